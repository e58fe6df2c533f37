"""Saves the losses' own layers, automatic weights and turns in checkpoints, separate from the student."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import Tensor

from mmkd.errors import UserError
from mmkd.registry import HOOKS
from mmkd.sharding import unwrapped

KEY = "distill_state"
_EXTRA = "._extra_state"  # torch's name for the state of `AutoWeight` and `Turns`


@HOOKS.register_module()
class DistillStateHook(Hook):
    """Save and restore the state of distillation losses, under ``distill_state``.

    A feature loss may have a 1×1 convolution that trains with the student; an automatic weight has a running
    mean; with ``teacher.every``, iterations are counted. None of it is in the student's ``state_dict``; this
    hook saves it so that training can be resumed. With ``load_from``, automatic weights are measured anew and
    counts start at 0. mmkd's train tool adds the hook.

    Raises:
        UserError: on ``--resume``, if the saved state belongs to other losses; before training, if the model
            is sharded.
    """

    def before_train(self, runner: Runner) -> None:
        """Refuse sharded models, whose checkpoints would fail."""
        unwrapped(runner.model)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Save the state next to the student."""
        state = _losses(runner).state_dict() if _losses(runner) is not None else {}
        if state:
            checkpoint[KEY] = weights_to_cpu(state)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore the state from the checkpoint."""
        losses, saved = _losses(runner), checkpoint.get(KEY)
        wanted = {} if losses is None else losses.state_dict()
        layers = {name for name in wanted if not name.endswith(_EXTRA)}
        # A training that only starts from another's weights measures anew.
        kept = set(wanted) if runner._resume else layers
        if not kept:
            return
        lacking = kept if saved is None else kept - layers - set(saved)
        if lacking:
            print_log(
                "the checkpoint has no distill_state for these distillation losses, so they start "
                "from scratch: " + ", ".join(sorted({name.partition(".")[0] for name in lacking})),
                "current",
                logging.WARNING,
            )
        if saved is None:
            return
        check_same_shapes(
            "distillation loss layers",
            *({key: x for key, x in part.items() if not key.endswith(_EXTRA)} for part in (wanted, saved)),
        )
        losses.load_state_dict({**wanted, **{name: saved[name] for name in kept if name in saved}})


def check_same_shapes(what: str, wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless tensors of a checkpoint have the names and shapes that the config asks for.

    Args:
        what: they are the tensors of.
        wanted: by the config.
        saved: in the checkpoint.
    """
    shapes, found = ({name: tuple(x.shape) for name, x in part.items()} for part in (wanted, saved))
    if shapes != found:
        differing = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise UserError(
            f"The {what} in the checkpoint do not match the config.",
            expected=f"{len(shapes)} tensors: {', '.join(sorted(shapes)[:10])}",
            found=f"others: {', '.join(differing[:10])}",
            remedy="resume with the config that wrote the checkpoint",
        )


def _losses(runner: Runner) -> Any:
    return getattr(unwrapped(runner.model), "distill", None)
