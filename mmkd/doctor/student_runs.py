"""Checks, from runs in sibling folders, whether the student alone is already as good as its teacher."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkd.compat import dumped_config
from mmkd.doctor.findings import Finding
from mmkd.hooks.metrics_file import LAST
from mmkd.teachers import plain_detector, teacher_entries

# Below the folder with the work dirs, as the train, sweep and compare tools create them.
_DEPTHS = ("*", "*/*", "*/*/*")
_MOST = 30  # the newest runs; each needs a config to be read


@dataclass(frozen=True)
class StudentRun:
    """A finished training of the student alone.

    Attributes:
        folder: its work dir.
        ap: box AP of its last validation, in [0, 1].
        at: when that was, in words.
    """

    folder: Path
    ap: float
    at: str


def behind_student(cfg: Config, ap: float, source: str, scatter: float) -> Iterator[Finding]:
    """Warn if a finished training of the same student beats the teacher; otherwise ok, or nothing.

    Args:
        cfg: the config to check, with its ``work_dir``.
        ap: the teacher's box AP, in [0, 1].
        source: the AP's source, in words.
        scatter: the AP's uncertainty, if measured on few images.
    """
    student = newest_run(cfg)
    if student is None:
        return
    text = f"{ap:.3f} ({source}); the student alone has {student.ap:.3f} ({student.folder}, {student.at})"
    if ap >= student.ap - scatter:
        yield Finding.ok("teacher: and student", text)
        return
    yield Finding.warning(
        "teacher: and student",
        f"{text}: the teacher is weaker than the student",
        "use a better teacher (larger, trained longer or on more images); if this student "
        "trains for less time than that run, `mmkd-compare … --probe` predicts whether "
        "distillation pays off",
    )


def newest_run(cfg: Config) -> StudentRun | None:
    """The newest finished training of a config's student without a teacher, in a sibling folder."""
    if not cfg.get("work_dir"):
        return None
    root = Path(cfg.work_dir).parent
    files = {file for depth in _DEPTHS for file in root.glob(f"{depth}/{LAST}")}
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[:_MOST]:
        ap_and_place = _last_validation(file)
        if ap_and_place is None:
            continue
        ap, epoch, iteration = ap_and_place
        for dumped in sorted(file.parent.glob("*.py")):
            other = dumped_config(dumped)
            train = other.get("train_cfg") or {}
            epochs, iterations = int(train.get("max_epochs") or 0), int(train.get("max_iters") or 0)
            ended = epoch >= epochs if epochs else 0 < iterations <= iteration
            if ended and _same_student(cfg, other):
                at = f"epoch {epoch}" if epochs else f"iteration {iteration}"
                return StudentRun(file.parent, ap, at)
    return None


def _last_validation(file: Path) -> tuple[float, int, int] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = [value for key, value in content["metrics"].items() if key.endswith("bbox_mAP")]
        return (float(found[0]), int(content["epoch"]), int(content["iter"])) if found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same_student(cfg: Config, other: Mapping[str, Any]) -> bool:
    """Whether the other config trains only this student, and validates on the same images."""
    if not other.get("model") or teacher_entries(other["model"].get("teacher")):
        return False
    return _identity(cfg) == _identity(other)


def _identity(cfg: Mapping[str, Any]) -> str:
    model = plain_detector(copy.deepcopy(cfg["model"])).to_dict()
    model.pop("type", None)  # the distilled student's type may be a base class
    val = (cfg.get("val_dataloader") or {}).get("dataset") or {}
    where = [val.get(key) for key in ("data_root", "ann_file", "metainfo")]
    return json.dumps([model, where], sort_keys=True, default=str)
