"""Resume from the newest readable checkpoint, running a missing validation first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint

from mmkd.errors import UserError
from mmkd.hooks.durable_checkpoint import DUE
from mmkd.hooks.interrupted import CHECKPOINT
from mmkd.registry import HOOKS
from mmkd.teachers.checkpoint import load_weights, own_keys


@HOOKS.register_module()
class ResumeHook(Hook):
    """Make ``--resume`` find the right checkpoint.

    - Without a file name, it resumes from the newest complete checkpoint in the work dir, with a warning for
      each newer incomplete one.
    - If the run ended between a checkpoint and the validation due after it, that validation runs first.

    mmkd's train tool adds this hook.

    Raises:
        UserError: there are checkpoints but none is readable; or the chosen one belongs to another model,
            from which mmengine would load whatever matches.
    """

    priority = "LOWEST"  # the validation needs what other hooks set up

    def __init__(self) -> None:
        self.due = False

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint before the Runner does."""
        if runner._resume and runner._load_from is None and not runner._has_loaded:
            chosen = [newest_whole(Path(runner.work_dir), runner) if is_main_process() else None]
            broadcast_object_list(chosen)
            runner._load_from = chosen[0] and str(chosen[0])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check that it matches, and whether its validation is still due.

        Raises:
            UserError: training is resumed from a file without training state, or from another model's.
        """
        if runner._resume:
            _check_state(checkpoint)
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            load_weights(model, own_keys(checkpoint["state_dict"], "it"), str(runner._load_from))
            self.due = bool(checkpoint["meta"].get(DUE))

    def before_train(self, runner: Runner) -> None:
        """Run the validation that is due."""
        if self.due and runner.val_loop is not None:
            runner.logger.info("running the interrupted validation first")
            runner.val_loop.run()


def newest_whole(work_dir: Path, runner: Runner) -> Path | None:
    """The newest readable checkpoint of a folder; ``None`` if it has no checkpoints.

    Tries the file named in ``last_checkpoint`` first, then the others from new to old.

    Raises:
        UserError: none of them is readable.
    """
    broken = []
    for path in candidates(work_dir):
        try:
            checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location="cpu", logger=None)
            _check_state(checkpoint)
        except Exception as error:
            broken.append(path.name)
            runner.logger.warning(
                f"Cannot resume from {path}: {error}\nTrying the previous checkpoint, if any."
            )
        else:
            runner.logger.info(f"resuming training from {path}")
            return path
    if broken:
        raise UserError(
            f"No usable checkpoint in {work_dir}.",
            expected="at least one intact checkpoint",
            found=f"{', '.join(broken)}, all unreadable (see above)",
            remedy="choose another with --resume FILE, or start over in another --work-dir",
        )
    runner.logger.warning(f"no checkpoint in {work_dir} yet: training starts from scratch")
    return None


def candidates(work_dir: Path) -> Iterator[Path]:
    """The checkpoints of a folder with training state, newest first."""
    named = find_latest_checkpoint(str(work_dir)) if (work_dir / "last_checkpoint").is_file() else None
    first = Path(named) if named else None
    if first is not None and not first.is_file() and (work_dir / first.name).is_file():
        first = work_dir / first.name  # the folder was moved
    if first is not None and first.is_file():
        yield first
    names = ("epoch_*.pth", "iter_*.pth", CHECKPOINT)
    found = [path for name in names for path in work_dir.glob(name)]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if first is None or path.name != first.name:
            yield path


def _check_state(checkpoint: dict[str, Any]) -> None:
    missing = {"state_dict", "optimizer", "meta"} - set(checkpoint)
    if missing or not isinstance(checkpoint["meta"], dict):
        raise UserError(
            "Cannot resume: the checkpoint contains no training state.",
            expected="state_dict, optimizer and meta, as saved by the train tool",
            found=", ".join(map(str, list(checkpoint)[:10])) or "nothing",
            remedy="resume from epoch_N.pth, or start a new training with --cfg-options load_from=FILE",
        )
