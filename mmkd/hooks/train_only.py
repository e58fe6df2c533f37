"""Train part of a model and keep the rest unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.registry import HOOKS
from mmkd.sharding import unwrapped


@HOOKS.register_module()
class TrainOnlyHook(Hook):
    """Freeze all but the named modules, and verify it.

    For teachers that must learn new classes: the classifier or the head is trained and everything else stays.
    Frozen modules get no gradient and stay in eval mode, so their BatchNorm statistics do not change either.
    After training they are compared bit by bit with their initial state. With several processes set
    ``find_unused_parameters=True``, because DistributedDataParallel wraps the model before the hook runs.

    Args:
        modules: names, like ``['bbox_head.atss_cls']`` or ``['bbox_head']``.

    Raises:
        UserError: a name is not a module, or the module has no parameters.
        RuntimeError: a frozen tensor has changed.
    """

    priority = "VERY_HIGH"

    def __init__(self, modules: Sequence[str]) -> None:
        if isinstance(modules, str) or not modules or not all(isinstance(name, str) for name in modules):
            raise UserError(f"TrainOnlyHook: modules must be a list of names, found {modules!r}")
        self.modules = tuple(modules)
        self._before: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Freeze, after the checkpoint is loaded."""
        model = unwrapped(runner.model)
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
        """Keep frozen modules in eval mode: mmengine switches the whole model to training mode."""
        for name, module in unwrapped(runner.model).named_modules():
            above = any(trained.startswith(f"{name}.") for trained in self.modules) or not name
            if not (self._trains(f"{name}.") or above):
                module.training = False

    def after_train(self, runner: Runner) -> None:
        """Compare the frozen modules with their initial state."""
        state = unwrapped(runner.model).state_dict()
        changed = [name for name, tensor in self._before.items() if not torch.equal(tensor, state[name])]
        if changed:
            raise RuntimeError(f"frozen parts of the model have changed: {', '.join(changed[:10])}")
        runner.logger.info(f"{len(self._before)} frozen tensors are unchanged")

    def _trains(self, name: str) -> bool:
        return any(name.startswith(f"{module}.") for module in self.modules)


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())
