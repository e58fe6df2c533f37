"""Preconditions that training and doctor check from the config and its files before the first step.

Nothing here builds a model or a data set.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmkd.datasets import is_remote
from mmkd.doctor.annotations import examine_classes, examine_keys, examine_names, read_source
from mmkd.doctor.data_and_model import examine_heads, examine_samples, is_transform, named_classes
from mmkd.doctor.evaluators import examine_evaluators
from mmkd.doctor.findings import Finding, collect, shortened
from mmkd.doctor.images import examine_files
from mmkd.doctor.loaders import examine_loader
from mmkd.doctor.setup import Source, TrainingSetup, has_no_labels
from mmkd.doctor.spelling import examine_spelling
from mmkd.doctor.unlabelled import examine_mixing, examine_unlabelled
from mmkd.doctor.wrappers import examine_wrappers
from mmkd.errors import UserError
from mmkd.registry import VISBACKENDS, class_of

# What mmdet reads from each annotation and image.
_READ = {
    "annotations": ("image_id", "category_id", "bbox", "area"),
    "images": ("id", "file_name", "height", "width"),
}
# What mmengine's backends import when they are built.
_PACKAGES = {
    "TensorboardVisBackend": ("tensorboard", "tensorboardX"),
    "WandbVisBackend": ("wandb",),
    "WandbBackend": ("wandb",),
    "MLflowVisBackend": ("mlflow",),
    "ClearMLVisBackend": ("clearml",),
    "NeptuneVisBackend": ("neptune",),
    "DVCLiveVisBackend": ("dvclive",),
    "AimVisBackend": ("aim",),
}

# In mmengine's Runner: all three or none.
_TOGETHER = (
    ("train_dataloader", "train_cfg", "optim_wrapper"),
    ("val_dataloader", "val_cfg", "val_evaluator"),
    ("test_dataloader", "test_cfg", "test_evaluator"),
)


def examine_preconditions(setup: TrainingSetup, which: Sequence[str] = ("train", "val")) -> Iterator[Finding]:
    """Check all preconditions for the given data loaders.

    Args:
        setup: the training to check.
        which: ``train``, ``val`` or ``test``.
    """
    yield from collect("spelling", examine_spelling, setup.cfg)
    yield from collect("visualizer", _backends, setup)
    yield from collect("loops", _loops, setup.cfg)
    for name in which:
        loader = setup.cfg.get(f"{name}_dataloader")
        if not loader:
            if name == "train":
                yield Finding.warning(name, "the config has no train_dataloader")
            continue
        yield from collect(f"{name}: loader", examine_loader, name, loader)
        yield from collect(f"{name}: data set", examine_wrappers, name, loader.get("dataset"))
        parts = setup.parts(name)
        for part in parts:
            yield from collect(f"{name}: classes", examine_names, name, part)
            yield from collect(f"{name}: pipeline", examine_samples, setup, name, part)
        if name == "train":
            yield from collect("train: mix", examine_mixing, setup)
            for part in parts:
                if has_no_labels(part):
                    yield from collect("train: unlabelled", examine_unlabelled, setup, part)
            parts = [part for part in parts if not has_no_labels(part)]
        sources = setup.sources.setdefault(name, [])
        if not sources and not setup.only_formats(name):
            for part in parts:
                yield from collect(f"{name}: annotations", _reading, name, part, sources)
        unlabelled = name == "train" and setup.is_unlabelled
        for source in sources:
            yield from collect(f"{name}: keys", examine_keys, f"{name}: annotations", source.coco, _READ)
            if source.classes:
                yield from collect(f"{name}: classes", examine_classes, source, unlabelled=unlabelled)
            if not _images_elsewhere(parts):
                images = source.coco["images"]
                yield from collect(f"{name}: image files", examine_files, name, source.folder, images)
        if name != "train":
            yield from examine_evaluators(setup, name)
    yield from collect("classes", _same_classes, setup, which)
    yield from collect("head: classes", examine_heads, setup, which)


def require(cfg: Config, which: Sequence[str]) -> list[Finding]:
    """Raise one `UserError` for all failed preconditions; returns the warnings.

    Args:
        cfg: the config, ready for the Runner.
        which: the data loaders in use.
    """
    findings = list(examine_preconditions(TrainingSetup(cfg), which))
    errors = [one for one in findings if one.level == "error"]
    if errors:
        told = [
            f"{one.what}: {one.found}" + (f"\n  remedy:   {one.remedy}" if one.remedy else "")
            for one in errors
        ]
        raise UserError("\n".join(dict.fromkeys(told)))
    return [one for one in findings if one.level == "warning"]


def _backends(setup: TrainingSetup) -> Iterator[Finding]:
    """Check that the packages of the visualizer's backends are installed."""
    for backend in (setup.cfg.get("visualizer") or {}).get("vis_backends") or []:
        name = getattr(class_of(backend, VISBACKENDS), "__name__", "")
        packages = _PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            yield Finding.error(
                "visualizer",
                f"{name} requires {' or '.join(packages)}, which is not installed",
                f"pip install {packages[0]}, or remove {name} from visualizer.vis_backends",
            )


def _loops(cfg: Config) -> Iterator[Finding]:
    """Check that settings which mmengine's Runner requires together are all there."""
    for loader, *others in _TOGETHER:
        names = (loader, *others)
        given = [name for name in names if cfg.get(name) is not None]
        lacking = [name for name in names if cfg.get(name) is None]
        if given and lacking:
            example = {"evaluator": "=dict(type='CocoMetric', ann_file=…)", "cfg": "=dict()"}
            adding = " and ".join(name + example.get(name.partition("_")[2], "=dict(…)") for name in lacking)
            yield Finding.error(
                lacking[0],
                f"the config has {' and '.join(given)} but no {' and no '.join(lacking)}",
                f"add {adding}, or set {' and '.join(given)} to None",
            )


def _reading(which: str, cfg: Mapping[str, Any], found: list[Source]) -> Iterator[Finding]:
    source = yield from read_source(which, cfg)
    if source is not None:
        found.append(source)


def _images_elsewhere(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether images are not in a local folder, or are read by a transform other than mmcv's."""
    for part in parts:
        loads = [one for one in part.get("pipeline") or () if is_transform(one, "LoadImageFromFile")]
        if not loads or any(is_remote(one) for one in loads):
            return True
    return False


def _same_classes(setup: TrainingSetup, which: Sequence[str]) -> Iterator[Finding]:
    """Check that all parts of a data set, and training and validation, have the same classes in order."""
    orders = {name: list(dict.fromkeys(named_classes(setup, name))) for name in which}
    for name, found in orders.items():
        if len(found) > 1:
            yield Finding.error(
                f"{name}: classes",
                "the concatenated data sets differ: " + " against ".join(map(shortened, found)),
                "give all of them the same metainfo.classes, in the same order",
            )
    given = {name: found[0] for name, found in orders.items() if found}
    if "train" in given and "val" in given and given["train"] != given["val"]:
        yield Finding.error(
            "train and val: classes",
            "they differ: " + " against ".join(shortened(given[name]) for name in ("train", "val")),
            "give both data loaders the same metainfo.classes, in the same order",
        )
