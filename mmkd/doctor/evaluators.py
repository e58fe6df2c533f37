"""Evaluators against the data set that they judge, by config and files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric

from mmkd.datasets import is_remote, where_from
from mmkd.doctor.annotations import examine_keys
from mmkd.doctor.findings import Finding, NotExamined, collect, shortened
from mmkd.doctor.setup import TrainingSetup
from mmkd.errors import nearest, type_of
from mmkd.registry import METRICS, class_of

# What pycocotools reads of the annotations and images that it evaluates.
_EVALUATED = {"annotations": ("image_id", "category_id", "bbox", "area", "iscrowd"), "images": ("id",)}


def examine_evaluators(setup: TrainingSetup, which: str) -> Iterator[Finding]:
    """Whether there are evaluators, and whether they are of the data set that they judge.

    Args:
        setup: the config, the annotations of its data sets read.
        which: ``val`` or ``test``.
    """
    option = f"{which}_evaluator"
    if not setup.evaluators(which):
        yield Finding(
            "error",
            option,
            f"the config has {which}_dataloader and no {option}",
            f"add {option}=dict(type='CocoMetric', ann_file=…), or set {which}_dataloader and {which}_cfg to "
            "None",
        )
        return
    for one in setup.evaluators(which):
        yield from collect(option, partial(_evaluator, setup, which, one))


def _evaluator(setup: TrainingSetup, which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Its type, its file, and whether that file is of the data set's images and classes."""
    option = f"{which}_evaluator"
    kind = class_of(cfg, METRICS)
    if kind is None:
        near = nearest(str(cfg.get("type")), METRICS.module_dict)
        yield Finding(
            "error",
            option,
            f"there is no metric {type_of(cfg)!r}",
            f"did you mean {near}?" if near else f"valid are: {', '.join(sorted(METRICS.module_dict))}",
        )
        return
    file = cfg.get("ann_file")
    if not file or "://" in str(file) or is_remote(cfg):
        return
    path = Path(str(file))
    if not path.is_file():
        yield Finding("error", option, f"no file {path}", f"{where_from(path)}, or correct {option}.ann_file")
        return
    sources = setup.sources.get(which) or []
    if not sources:  # which was said where they were read
        return
    if not (isinstance(kind, type) and issubclass(kind, CocoMetric)):
        raise NotExamined(f"whether {path} is of the images of {which}_dataloader")
    same = [source for source in sources if source.file.resolve() == path.resolve()]
    coco = same[0].coco if same else json.loads(path.read_text(encoding="utf-8"))
    yield from examine_keys(option, coco, _EVALUATED)
    # Files that were numbered anew share their numbers, so the names count as well.
    there, asked = (
        {(image.get("id"), Path(str(image.get("file_name"))).name) for image in images}
        for images in (coco["images"], [image for source in sources for image in source.coco["images"]])
    )
    if asked - there:
        yield Finding(
            "error",
            option,
            f"{len(asked - there)} of the {len(asked)} images of {which}_dataloader are not in {path}",
            f"name the same annotation file in {option} and {which}_dataloader.dataset",
        )
    names = {str(category.get("name")) for category in coco["categories"]}
    strange = [name for name in sources[0].classes if name not in names]
    if strange and not same:
        yield Finding(
            "error",
            option,
            f"{path} has no class {shortened(strange)}; there: {shortened(sorted(names), 12)}",
            f"name the annotation file of {which}_dataloader.dataset",
        )
