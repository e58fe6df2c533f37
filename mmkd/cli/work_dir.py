"""Keeps each work dir to one config, so that no run overwrites another config's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkd.compat import dumped_config
from mmkd.datasets import innermost
from mmkd.errors import UserError, type_of


def check_work_dir(cfg: Config) -> None:
    """Refuse a work dir that holds checkpoints of another config.

    The same config may train there again, resumed or from scratch, with other hyperparameters.

    Raises:
        UserError: the work dir holds such checkpoints.
    """
    folder = Path(cfg.work_dir)
    if not any(folder.glob("*.pth")):
        return
    mine = Path(cfg.filename).name if cfg.filename else ""
    dumped = sorted(path for path in folder.glob("*.py"))
    if not dumped:
        return
    for path in dumped:
        if path.name == mine and identity(dumped_config(path)) == identity(cfg):
            return
    raise UserError(
        f"The work dir {folder} contains checkpoints of another config.",
        expected="a separate folder for each config, so that no result is overwritten",
        found=", ".join(path.name for path in dumped)
        + (f", which trained something else as {mine}" if folder / mine in dumped else ""),
        remedy="choose another --work-dir"
        + (f", with --resume FILE to continue from a checkpoint in {folder}" if cfg.get("resume") else "")
        + f"; or delete {folder} if you do not need its checkpoints",
    )


def identity(cfg: Mapping[str, Any]) -> list[Any]:
    """What identifies a training: the model's types, its teacher, and the training data's files."""
    data = (cfg.get("train_dataloader") or {}).get("dataset")
    model = cfg.get("model") or {}
    teacher = model.get("teacher") or {}
    return [
        *sorted(_types(model)),  # mmengine may reorder keys when it writes a config
        str(teacher.get("config")) if isinstance(teacher, Mapping) else len(teacher),
        *(f"{one.get('data_root') or ''}{one.get('ann_file') or ''}" for one in innermost(data)),
    ]


def _types(part: Any, place: str = "model") -> Iterator[str]:
    if isinstance(part, Mapping):
        if "type" in part:
            yield f"{place}: {type_of(part).rpartition('.')[2]}"
        for name, value in part.items():
            if name != "teacher":
                yield from _types(value, f"{place}.{name}")
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _types(value, place)
