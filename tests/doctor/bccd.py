"""The shipped blood cells, and damages to their config."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmkd.compat import load_config
from mmkd.doctor import Finding, Section, TrainingSetup
from mmkd.doctor.preconditions import examine_preconditions

CHECKPOINT = "data/bccd/teacher_atss_r18_narrow.pth"
IMAGES = 3

Damage = Callable[[Config], object]


def setup(*damages: Damage, images: int = IMAGES) -> TrainingSetup:
    """The recipe of the README under examination, damaged."""
    cfg = Config.fromfile("configs/bccd/kd.py")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.serialize_data = False  # which collects garbage, half a second each time
    for damage in damages:
        damage(cfg)
    return TrainingSetup(cfg, images)


def examined_preconditions(*damages: Damage) -> list[Finding]:
    """What the preconditions find in a damaged config."""
    return list(examine_preconditions(setup(*damages)))


def errors(*damages: Damage) -> list[str]:
    """The same as text, but for what is right."""
    found = examined_preconditions(*damages)
    return [f"{one.what}: {one.found}; {one.remedy}" for one in found if one.level != "ok"]


def each(change: Callable[[Any], object]) -> Damage:
    """Change the data set of training and that of validation."""

    def damage(cfg: Config) -> None:
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            change(loader.dataset)

    return damage


def teacher_pixels(**settings: Any) -> Damage:
    """The teacher's config says other pixels than it was trained on."""

    def damage(cfg: Config) -> None:
        teacher = load_config("mmkd::bccd/teacher.py")
        teacher.model.data_preprocessor.update(settings)
        cfg.model.teacher.config = {
            "model": teacher.model.to_dict(),
            "val_dataloader": teacher.val_dataloader.to_dict(),
        }

    return damage


def smaller(cfg: Config) -> None:
    """Images four times smaller than the teacher's."""
    cfg.train_dataloader.dataset.pipeline[2].scale = (80, 60)
    cfg.val_dataloader.dataset.pipeline[1].scale = (80, 60)


def checkpoint(path: Path, names: tuple[str, ...] | None) -> Damage:
    """The teacher's checkpoint with other class names, or none."""

    def damage(cfg: Config) -> None:
        content = torch.load(CHECKPOINT, map_location="cpu")
        content["meta"] = {} if names is None else {"dataset_meta": {"classes": names}}
        torch.save(content, path)
        cfg.model.teacher.checkpoint = str(path)

    return damage


def annotations(folder: Path, change: Callable[[dict[str, Any]], object], *which: str) -> Damage:
    """Other annotation files; ``change`` is given what they hold."""

    def damage(cfg: Config) -> None:
        for name in which or ("train", "val"):
            content = json.loads(Path(f"data/bccd/annotations/{name}.json").read_text())
            change(content)
            path = folder / f"{name}.json"
            path.write_text(json.dumps(content))
            dataset = cfg[f"{name}_dataloader"].dataset
            dataset.ann_file = str(path)

    return damage


def reordered(content: dict[str, Any]) -> None:
    """Classes in another order, which is that of mmdet's labels."""
    content["categories"] = [content["categories"][index] for index in (1, 2, 0)]


def other_names(cfg: Config) -> None:
    """What the config calls the classes of `reordered`."""
    cfg.train_dataloader.dataset.metainfo.classes = ("RBC", "WBC", "Platelets")
    cfg.val_dataloader.dataset.metainfo = copy.deepcopy(cfg.train_dataloader.dataset.metainfo)


def seen(sections: list[Section] | list[Finding], *levels: str) -> list[Finding]:
    """Findings of these levels, by default of those that are not ok."""
    findings = [
        finding for one in sections for finding in (one.findings if isinstance(one, Section) else [one])
    ]
    return [finding for finding in findings if finding.level in (levels or ("warning", "error"))]
