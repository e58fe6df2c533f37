"""The losses' own layers in checkpoints, beside the student and not in it."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu

from mmkd.errors import UserError
from mmkd.registry import HOOKS
from mmkd.sharding import unwrapped

KEY = "distill_state"


@HOOKS.register_module()
class DistillStateHook(Hook):
    """Save and restore the layers of distillation losses, under ``distill_state``.

    A feature loss may have a 1×1 convolution of its own, which trains with the student. It is in none of
    the student's ``state_dict``; this hook keeps it, so that training can go on. mmkd's train tool adds it.

    Raises:
        UserError: on ``--resume``, if what was saved is of other losses; before training, if the model is
            kept in shards.
    """

    def before_train(self, runner: Runner) -> None:
        """Refuse a model in shards, whose checkpoints would fail."""
        unwrapped(runner.model)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put them beside the student."""
        state = _losses(runner).state_dict() if _losses(runner) is not None else {}
        if state:
            checkpoint[KEY] = weights_to_cpu(state)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take them from there."""
        losses, saved = _losses(runner), checkpoint.get(KEY)
        wanted = {} if losses is None else losses.state_dict()
        if not wanted:
            return
        if saved is None:
            print_log(
                "the checkpoint has no layers of distillation losses (distill_state): they begin anew",
                "current",
                logging.WARNING,
            )
            return
        shapes, found = ({name: tuple(t.shape) for name, t in part.items()} for part in (wanted, saved))
        if shapes != found:
            differing = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
            raise UserError(
                "The checkpoint's layers of distillation losses are not those of the config.",
                expected=f"{len(shapes)} tensors: {', '.join(sorted(shapes)[:10])}",
                found=f"others: {', '.join(differing[:10])}",
                remedy="resume with the config that wrote the checkpoint",
            )
        losses.load_state_dict(saved)


def _losses(runner: Runner) -> Any:
    return getattr(unwrapped(runner.model), "distill", None)
