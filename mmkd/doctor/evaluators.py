"""Check that evaluators match their data set, by config and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EarlyStoppingHook

from mmkd.build_errors import names_in
from mmkd.datasets import is_remote, where_from
from mmkd.doctor.annotations import examine_keys, read_coco
from mmkd.doctor.findings import Finding, Level, NotExamined, collect, shortened
from mmkd.doctor.setup import TrainingSetup
from mmkd.errors import instead, type_of
from mmkd.registry import HOOKS, METRICS, TRANSFORMS, class_of, is_kind

# What pycocotools reads from annotations and images.
_EVALUATED = {"annotations": ("image_id", "category_id", "bbox", "area", "iscrowd"), "images": ("id",)}
# What `CocoMetric` computes, and returns by default.
_METRICS = ("bbox", "segm", "proposal", "proposal_fast")
_PRECISION = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_RECALL = ("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000")


def examine_evaluators(setup: TrainingSetup, which: str) -> Iterator[Finding]:
    """Check that there are evaluators, and that they match their data set.

    Args:
        setup: the training, with the annotations of its data sets read.
        which: ``val`` or ``test``.
    """
    option = f"{which}_evaluator"
    for one in setup.evaluators(which):
        if isinstance(one, Mapping):
            yield from collect(option, _evaluator, setup, which, one)
        elif not isinstance(one, BaseMetric):
            remedy = f"write {option}=dict(type='CocoMetric', ann_file=…)"
            yield Finding.error(option, f"{one!r} is not a metric", remedy)
    if which == "val":
        yield from collect("save_best", _followed, setup)


def _evaluator(setup: TrainingSetup, which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Check its type, its file, and that the file has the data set's images and classes."""
    option = f"{which}_evaluator"
    kind = class_of(cfg, METRICS)
    if kind is None:
        found = f"unknown metric {type_of(cfg)!r}" if "type" in cfg else "a metric has no type"
        yield Finding.error(option, found, instead(str(cfg.get("type")), sorted(names_in(METRICS))))
        return
    if _is_coco(kind):
        yield from _coco_options(setup, which, cfg)
    file = cfg.get("ann_file")
    if not file or "://" in str(file) or is_remote(cfg):
        return
    path = Path(str(file))
    if not path.is_file():
        yield Finding.error(option, f"no file {path}", f"{where_from(path)}, or correct {option}.ann_file")
        return
    sources = setup.sources.get(which) or []
    if not sources:  # reported when they were read
        return
    if not (isinstance(kind, type) and issubclass(kind, CocoMetric)):
        raise NotExamined(f"whether {path} matches the images of {which}_dataloader")
    same = [source for source in sources if source.file.resolve() == path.resolve()]
    coco = same[0].coco if same else (yield from read_coco(option, path))
    if coco is None:
        return
    yield from examine_keys(option, coco, _EVALUATED)
    # Renumbered files share ids, so compare names as well.
    there, asked = (
        {(image.get("id"), Path(str(image.get("file_name"))).name) for image in images}
        for images in (coco["images"], [image for source in sources for image in source.coco["images"]])
    )
    if asked - there:
        yield Finding.error(
            option,
            f"{len(asked - there)} of the {len(asked)} images of {which}_dataloader are not in {path}",
            f"use the same annotation file in {option} and {which}_dataloader.dataset",
        )
    names = {str(category.get("name")) for category in coco["categories"]}
    strange = [name for name in sources[0].classes if name not in names]
    if strange and not same:
        yield Finding.error(
            option,
            f"{path} has no class {shortened(strange)}; it has: {shortened(sorted(names), 12)}",
            f"use the annotation file of {which}_dataloader.dataset",
        )


def _coco_options(setup: TrainingSetup, which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Check options that `CocoMetric` only reads after a whole epoch, or reports badly."""
    option = f"{which}_evaluator"
    metrics, items = _wrong_options(cfg)
    for name in metrics:
        found = f"CocoMetric has no metric {name!r}"
        yield Finding.error(option, found, instead(str(name), _METRICS))
    if items:
        remedy = f"use a list of: {', '.join((*_PRECISION, *_RECALL))}"
        yield Finding.error(option, f"metric_items has {shortened(map(repr, items))}", remedy)
    if cfg.get("format_only") and cfg.get("outfile_prefix") is None:
        remedy = f"set {option}.outfile_prefix"
        yield Finding.error(option, "format_only needs an outfile_prefix to write results to", remedy)
    packs = [one for part in setup.parts(which) for one in part.get("pipeline") or ()]
    packs = [one for one in packs if class_of(one, TRANSFORMS) is PackDetInputs]
    with_truth = [one for one in packs if "instances" in one.get("meta_keys", ())]
    if cfg.get("ann_file") is None and not cfg.get("format_only") and packs and not with_truth:
        yield Finding.error(
            option,
            "CocoMetric has no ann_file, and the samples contain no ground truth",
            f"set {option}.ann_file to the annotation file of {which}_dataloader.dataset",
        )


def _wrong_options(cfg: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """The values in ``metric`` and ``metric_items`` that `CocoMetric` does not know."""
    metrics = [one for one in _listed(cfg.get("metric", "bbox")) if one not in _METRICS]
    items = cfg.get("metric_items") or ()
    if isinstance(items, str):
        return metrics, [items]
    return metrics, [one for one in items if one not in (*_PRECISION, *_RECALL)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _followed(setup: TrainingSetup) -> Iterator[Finding]:
    """Check that the evaluators return the metrics that hooks follow after each validation."""
    checkpoint = (setup.cfg.get("default_hooks") or {}).get("checkpoint") or {}
    followed: list[tuple[Level, str, Any]] = [
        ("error", "save_best", key) for key in _listed(checkpoint.get("save_best"))
    ]
    for hook in setup.cfg.get("custom_hooks") or ():
        if isinstance(hook, Mapping) and is_kind(hook, EarlyStoppingHook, registry=HOOKS):
            followed.append(
                ("error" if hook.get("strict") else "warning", "EarlyStoppingHook", hook.get("monitor"))
            )
    evaluators = setup.evaluators("val")
    for level, what, key in followed:
        if not isinstance(key, str) or key == "auto" or any(_gives(one, key) for one in evaluators):
            continue
        names = [name for one in evaluators for name in _figures(one)]
        yield Finding(level, what, f"val_evaluator does not report {key}", instead(key, names))


def _gives(cfg: Any, key: str) -> bool:
    """Whether an evaluator returns a metric of this name, as far as is known."""
    kind = class_of(cfg, METRICS)
    prefix = (cfg.get("prefix") if isinstance(cfg, Mapping) else None) or getattr(
        kind, "default_prefix", None
    )
    if prefix is None or not key.startswith(f"{prefix}/"):
        return prefix is None
    classwise = cfg.get("classwise") and key.endswith("_precision")
    return bool(classwise) or key in _figures(cfg) or not _figures(cfg)


def _figures(cfg: Any) -> list[str]:
    """The names of the metrics that `CocoMetric` returns; empty for other evaluators."""
    if not isinstance(cfg, Mapping) or not _is_coco(class_of(cfg, METRICS)) or any(_wrong_options(cfg)):
        return []
    names: list[str] = []
    for metric in _listed(cfg.get("metric", "bbox")):
        if metric == "proposal_fast":
            names += [f"AR@{number}" for number in cfg.get("proposal_nums", (100, 300, 1000))]
        elif metric == "proposal":
            names += cfg.get("metric_items") or _RECALL
        else:
            names += [f"{metric}_{item}" for item in cfg.get("metric_items") or _PRECISION]
    return [f"{cfg.get('prefix') or 'coco'}/{name}" for name in names]


def _is_coco(kind: Any) -> bool:
    return getattr(kind, "compute_metrics", None) is CocoMetric.compute_metrics
