"""Validation metrics as small JSON files next to the checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmkd.durable import use_durable_files, write_json
from mmkd.hooks.stop import is_training
from mmkd.registry import HOOKS

LAST, BEST = "metrics_val_last.json", "metrics_val_best.json"


@HOOKS.register_module()
class MetricsFileHook(Hook):
    """Write ``metrics_val_last.json`` and ``metrics_val_best.json``.

    Each holds ``metrics``, ``epoch``, ``iter`` and ``checkpoint`` (the file's name, or null if none was
    written then). ``metrics`` is empty if the evaluator returned none: mmdet does so if nothing was detected.
    `CheckpointHook` (``save_best``) decides which validation is the best; without it there is no file for the
    best. Files are replaced atomically, so they are never half written.
    """

    priority = 95  # after CheckpointHook picks the best, before StopHook resumes a run

    def before_run(self, runner: Runner) -> None:
        """Make the checkpoints that the files name atomic, too."""
        use_durable_files()

    def before_train(self, runner: Runner) -> None:
        """Remember the best checkpoint so far; remove files of another run."""
        self._best = runner.message_hub.get_info("best_ckpt", None)
        self._drop_stale(Path(runner.work_dir) / BEST, runner)

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the files after each validation during training."""
        if metrics is None or not is_training(runner):
            return
        by_epoch, saver = True, None
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                saver, by_epoch = hook, hook.by_epoch
        step = runner.epoch if by_epoch else runner.iter
        last = None
        if saver is not None and _name(saver.last_ckpt) == saver.filename_tmpl.format(step):
            last = saver.last_ckpt
        self._write(runner, LAST, metrics, last)
        best = getattr(saver, "best_ckpt_path", None)
        if best is not None and best != self._best:
            self._best = best
            self._write(runner, BEST, metrics, best)

    def _write(self, runner: Runner, file: str, metrics: dict[str, float], checkpoint: str | None) -> None:
        content: dict[str, Any] = {
            "metrics": {key: float(value) for key, value in metrics.items()},
            "epoch": runner.epoch,
            "iter": runner.iter,
            "checkpoint": _name(checkpoint),
        }
        write_json(Path(runner.work_dir) / file, content)

    @master_only
    def _drop_stale(self, best: Path, runner: Runner) -> None:
        if best.is_file() and json.loads(best.read_text(encoding="utf-8"))["checkpoint"] != _name(self._best):
            runner.logger.info(f"{best} does not belong to this run's best checkpoint; it will be rewritten")
            best.unlink()


def _name(path: str | None) -> str | None:
    return None if path is None else os.path.basename(path)
