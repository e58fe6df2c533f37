"""A safe `CheckpointHook`: there are never fewer checkpoints than configured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmkd.durable import use_durable_files, write_durably
from mmkd.registry import HOOKS

# Set in a checkpoint's meta if the validation that follows it has not run yet.
DUE = "validation_due"


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """Removes an outdated checkpoint only after its successor is written.

    With ``max_keep_ckpts=1`` or ``save_best``, mmengine's hook leaves no checkpoint at all while it writes.
    This one also records in each checkpoint whether a validation is due after it, for `ResumeHook`. mmkd's
    train tool uses it instead of ``CheckpointHook``; the arguments are the same.
    """

    due = False

    def before_run(self, runner: Runner) -> None:
        """Make checkpoint files atomic: complete or not there at all."""
        use_durable_files()

    def before_train(self, runner: Runner) -> None:
        """Delay removals."""
        super().before_train(runner)
        self.file_backend: Any = _RemovesLater(self.file_backend)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, then remove."""
        super().after_train_epoch(runner)
        self._remove_outdated()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save, then remove."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self._remove_outdated()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best, then remove its predecessor."""
        super().after_val_epoch(runner, metrics)
        self._remove_outdated()

    def _save_checkpoint(self, runner: Runner) -> None:
        self.due = _validation_follows(runner, self.by_epoch)
        super()._save_checkpoint(runner)
        self.due = False  # this checkpoint is written after the validation

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        meta[DUE] = self.due
        super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():  # mmengine wrote it, but not atomically
            write_durably(Path(runner.work_dir) / "last_checkpoint", str(self.last_ckpt).encode())

    def _remove_outdated(self) -> None:
        if isinstance(self.file_backend, _RemovesLater):
            best = getattr(self, "best_ckpt_path_dict", None) or {"": getattr(self, "best_ckpt_path", None)}
            self.file_backend.remove_now(but=[self.last_ckpt, *best.values()])


def _validation_follows(runner: Runner, by_epoch: bool) -> bool:
    loop = runner.train_loop
    if runner.val_loop is None or by_epoch != isinstance(loop, EpochBasedTrainLoop):
        return False
    step, last = (runner.epoch + 1, loop.max_epochs) if by_epoch else (runner.iter + 1, loop.max_iters)
    return bool(step >= loop.val_begin and (step % loop.val_interval == 0 or step == last))


class _RemovesLater:
    """A file backend that collects what to remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.outdated: list[tuple[str, str]] = []

    def remove(self, path: str) -> None:
        self.outdated.append(("remove", path))

    def rmtree(self, path: str) -> None:
        self.outdated.append(("rmtree", path))

    def remove_now(self, but: Sequence[str | None]) -> None:
        while self.outdated:
            how, path = self.outdated.pop()
            if path not in but:
                getattr(self.backend, how)(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)
