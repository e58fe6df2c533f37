"""Train part of a model and keep the rest unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.registry import HOOKS


@HOOKS.register_module()
class TrainOnlyHook(Hook):
    """Freeze all but the named modules, and verify it.

    For a teacher that is to learn new classes: its classifier, or its head, is trained and all else stays.
    What is frozen gets no gradient and stays in eval mode, so that its BatchNorm statistics do not move
    either. After training it is compared with what it was, to the bit. With several processes set
    ``find_unused_parameters=True``, since DistributedDataParallel is there before the hook.

    Args:
        modules: names, like ``['bbox_head.atss_cls']`` or ``['bbox_head']``.

    Raises:
        UserError: a name is of no module, or of none with parameters.
        RuntimeError: something that is frozen has changed.
    """

    priority = "VERY_HIGH"

    def __init__(self, modules: Sequence[str]) -> None:
        if isinstance(modules, str) or not modules or not all(isinstance(name, str) for name in modules):
            raise UserError(f"TrainOnlyHook: modules must be a list of names, found {modules!r}")
        self.modules = tuple(modules)
        self._before: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Freeze, after the checkpoint was loaded."""
        model = _unwrapped(runner)
        names = dict(model.named_modules())
        strange = [name for name in self.modules if not any(True for _ in _parameters(names.get(name)))]
        if strange:
            raise UserError(
                f"TrainOnlyHook: no such module with parameters: {', '.join(strange)}.",
                expected=f"any of {', '.join((name for name, _ in model.named_children()))}, or "
                "submodules of them",
                found=", ".join(strange),
                remedy="correct the name",
            )
        trained = 0
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trains(name))
            trained += parameter.numel() * self._trains(name)
        self._before = {
            name: tensor.detach().clone()
            for name, tensor in model.state_dict().items()
            if not self._trains(name)
        }
        total = sum(parameter.numel() for parameter in model.parameters())
        runner.logger.info(
            f"training only {', '.join(self.modules)}: {trained} of {total} parameters, the rest is frozen"
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Keep what is frozen in eval mode: mmengine puts the whole model into training mode."""
        for name, module in _unwrapped(runner).named_modules():
            above = any(trained.startswith(f"{name}.") for trained in self.modules) or not name
            if not (self._trains(f"{name}.") or above):
                module.training = False

    def after_train(self, runner: Runner) -> None:
        """Compare."""
        state = _unwrapped(runner).state_dict()
        changed = [name for name, tensor in self._before.items() if not torch.equal(tensor, state[name])]
        if changed:
            raise RuntimeError(f"frozen parts of the model have changed: {', '.join(changed[:10])}")
        runner.logger.info(f"{len(self._before)} frozen tensors are unchanged")

    def _trains(self, name: str) -> bool:
        return any(name.startswith(f"{module}.") for module in self.modules)


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


def _unwrapped(runner: Runner) -> nn.Module:
    model: nn.Module = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model
