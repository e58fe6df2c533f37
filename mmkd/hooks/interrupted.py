"""Saves the checkpoint of an interrupted training, and resumes from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmkd.durable import write_durably
from mmkd.hooks.durable_checkpoint import DUE

CHECKPOINT = "interrupted.pth"
# Keys that this checkpoint adds to mmengine's message hub.
STATE = "interrupted_at"


def save_interrupted(runner: Runner, iterations: int, validating: bool) -> Path:
    """Save the state after this many iterations, for ``--resume``.

    Args:
        runner: the training's runner.
        iterations: the number of completed iterations.
        validating: whether it was interrupted during a validation.
    """
    length = len(runner.train_dataloader)
    at = {"batches": iterations - runner.epoch * length, "of": length}
    runner.message_hub.update_info(STATE, at)
    meta = {"epoch": runner.epoch, "iter": iterations, DUE: validating}
    runner.save_checkpoint(runner.work_dir, CHECKPOINT, meta=meta, by_epoch=False)
    path = Path(runner.work_dir) / CHECKPOINT
    if is_main_process():
        write_durably(path.with_name("last_checkpoint"), str(path).encode())
    return path


def skip_done_batches(runner: Runner) -> None:
    """Start the first epoch after a resume where the interrupted one stopped."""
    at = runner.message_hub.get_info(STATE, None)
    runner.message_hub.update_info(STATE, None)
    if not at or not isinstance(runner.train_loop, EpochBasedTrainLoop):  # others skip them themselves
        return
    loader = runner.train_dataloader
    if len(loader) != at["of"]:
        runner.logger.warning(
            f"the interrupted epoch had {at['of']} batches and now has {len(loader)}: it is restarted"
        )
    elif at["batches"]:
        runner.logger.info(f"{at['batches']} of {at['of']} batches of this epoch are already done")
        # A DataLoader does not allow setting it, and loads only what it yields.
        vars(loader)["batch_sampler"] = _Remaining(loader.batch_sampler, at["batches"])


def remove_outdated(runner: Runner) -> None:
    """Remove an interruption's checkpoint once a newer one has replaced it."""
    folder = Path(runner.work_dir)
    last = folder / "last_checkpoint"
    named = Path(last.read_text(encoding="utf-8").strip()).name if last.is_file() else ""
    if is_main_process() and named != CHECKPOINT:
        (folder / CHECKPOINT).unlink(missing_ok=True)


class _Remaining:
    """A batch sampler that skips its first batches once."""

    def __init__(self, batches: Any, done: int) -> None:
        self.batches, self.done = batches, done

    def __iter__(self) -> Iterator[Any]:
        done, self.done = self.done, 0
        for position, batch in enumerate(self.batches):
            if position >= done:
                yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)
