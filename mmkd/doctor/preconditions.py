"""What must hold before the first step, as far as the config and its files tell: training and doctor ask it.

Nothing here builds a model or a data set.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from torch.utils.data import DataLoader

from mmkd.datasets import innermost, is_remote, where_from
from mmkd.doctor.annotations import classes_of, examine_classes, read_source
from mmkd.doctor.case import Case, Source
from mmkd.doctor.findings import Finding, NotExamined, collect, shortened
from mmkd.doctor.images import examine_files
from mmkd.doctor.spelling import examine_spelling
from mmkd.errors import UserError, type_of
from mmkd.registry import METRICS, TRANSFORMS, VISBACKENDS, class_of, is_kind

# Taken from the config by mmengine's Runner; the rest is torch's.
_OF_RUNNER = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch"}
# What mmdet reads of each annotation and image, and pycocotools of those that it evaluates.
_READ = {
    "annotations": ("image_id", "category_id", "bbox", "area"),
    "images": ("id", "file_name", "height", "width"),
}
_EVALUATED = {"annotations": ("image_id", "category_id", "bbox", "area", "iscrowd"), "images": ("id",)}
# What a prediction is turned back into an image's coordinates by, and found again by.
_META_OF_TESTS = ("img_id", "ori_shape", "img_shape", "scale_factor")
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
# Heads that classify something else than the data set's classes, by the name that they have in a model.
_OTHER_CLASSES = ("rpn_head", "semantic_head", "panoptic_head", "panoptic_fusion_head")


def examine_preconditions(case: Case, which: Sequence[str] = ("train", "val")) -> Iterator[Finding]:
    """All of them, for some of the data loaders.

    Args:
        case: the config.
        which: ``train``, ``val`` or ``test``.
    """
    yield from collect("spelling", partial(examine_spelling, case.cfg))
    yield from collect("visualizer", partial(_backends, case))
    for name in which:
        loader = case.cfg.get(f"{name}_dataloader")
        if not loader:
            if name == "train":
                yield Finding("warning", name, "the config has no train_dataloader")
            continue
        yield from collect(f"{name}: loader", partial(_loader, name, loader))
        parts = list(innermost(loader.get("dataset")))
        for part in parts:
            yield from collect(f"{name}: classes", partial(_names, name, part))
            yield from collect(f"{name}: pipeline", partial(_pipeline, case, name, part))
        sources = case.sources.setdefault(name, [])
        if not sources and not _is_formatted(case, name):
            for part in parts:
                yield from collect(f"{name}: annotations", partial(_reading, name, part, sources))
        unlabelled = name == "train" and case.cfg.get("model", {}).get("task_loss_weight", 1) == 0
        for source in sources:
            yield from collect(f"{name}: keys", partial(_keys, f"{name}: annotations", source.coco, _READ))
            yield from collect(f"{name}: classes", partial(examine_classes, source, unlabelled=unlabelled))
            if not _images_elsewhere(parts):
                files = partial(examine_files, name, source.folder, source.coco["images"])
                yield from collect(f"{name}: image files", files)
        if name != "train":
            yield from _evaluators(case, name)
    yield from collect("classes", partial(_same_classes, case, which))
    yield from collect("head: classes", partial(_heads, case, which))


def require(cfg: Config, which: Sequence[str]) -> Iterator[Finding]:
    """Raise one `UserError` for all preconditions that do not hold; give the warnings.

    Args:
        cfg: the config, ready for the Runner.
        which: the data loaders that are used.
    """
    findings = list(examine_preconditions(Case(cfg), which))
    errors = [one for one in findings if one.level == "error"]
    if errors:
        told = [
            f"{one.what}: {one.found}" + (f"\n  remedy:   {one.remedy}" if one.remedy else "")
            for one in errors
        ]
        raise UserError("\n".join(dict.fromkeys(told)))
    return (one for one in findings if one.level == "warning")


def _backends(case: Case) -> Iterator[Finding]:
    """Whether what the visualizer logs by is installed."""
    for backend in (case.cfg.get("visualizer") or {}).get("vis_backends") or []:
        name = getattr(class_of(backend, VISBACKENDS), "__name__", "")
        packages = _PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            yield Finding(
                "error",
                "visualizer",
                f"{name} needs {' or '.join(packages)}, which is not installed",
                f"pip install {packages[0]}, or leave {name} out of visualizer.vis_backends",
            )


def _loader(which: str, loader: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether mmengine and torch take its options; nothing is loaded."""
    what, option = f"{which}: loader", f"{which}_dataloader"
    if not isinstance(loader.get("dataset"), Mapping):
        yield Finding("error", what, f"{option} has no dataset", f"give {option}.dataset=dict(type=…)")
        return
    if "sampler" not in loader:
        yield Finding(
            "error",
            what,
            f"{option} has no sampler",
            f"set {option}.sampler=dict(type='DefaultSampler', shuffle={which == 'train'})",
        )
    options = {key: value for key, value in loader.items() if key not in _OF_RUNNER}
    valid = set(inspect.signature(DataLoader).parameters) | _OF_RUNNER
    unknown = [key for key in options if key not in valid]
    if unknown:
        near = difflib.get_close_matches(unknown[0], valid, n=1)
        yield Finding(
            "error",
            what,
            f"{option} has no option {shortened(unknown)}",
            f"did you mean {near[0]}?" if near else f"valid are: {', '.join(sorted(valid))}",
        )
        return
    try:
        DataLoader([0], **options)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        yield Finding("error", what, f"torch refuses {option}: {error}", f"correct {option}")


def _names(which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    names = (cfg.get("metainfo") or {}).get("classes")
    if isinstance(names, str) and not Path(names).is_file():  # mmengine reads such a file
        yield Finding(
            "error",
            f"{which}: classes",
            f"metainfo.classes is the string {names!r}, whose letters become the classes",
            f"write a tuple, with its comma: classes=({names!r},)",
        )


def _pipeline(case: Case, which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """What the transforms leave in a sample, and how many channels its image has."""
    what, option = f"{which}: pipeline", f"{which}_dataloader.dataset.pipeline"
    transforms = [one for one in cfg.get("pipeline") or () if isinstance(one, Mapping)]
    packs = [one for one in transforms if _called(one, "PackDetInputs")]
    for pack in packs:
        keys = pack.get("meta_keys")
        wanted = ("img_shape",) if which == "train" else _META_OF_TESTS
        lacking = [] if keys is None else [key for key in wanted if key not in keys]
        if lacking:
            yield Finding(
                "error",
                what,
                f"PackDetInputs.meta_keys lacks {', '.join(lacking)}, which the detector reads",
                f"add it in {option}",
            )
    loads = [one for one in transforms if _called(one, "LoadImageFromFile")]
    model = case.cfg.get("model") or {}
    preprocessor = model.get("data_preprocessor") or case.cfg.get("data_preprocessor") or {}
    backbone = model.get("backbone") or {}
    if not loads or any(one.get("color_type", "color") not in ("color", "grayscale") for one in loads):
        return
    channels = 1 if any(one.get("color_type") == "grayscale" for one in loads) else 3
    mean = preprocessor.get("mean")
    if isinstance(mean, (list, tuple)) and len(mean) == 3 != channels:
        yield Finding(
            "error",
            what,
            "images are loaded with 1 channel (color_type='grayscale'); data_preprocessor.mean has 3 values",
            "give mean and std one value each, and the backbone in_channels=1; or load colours",
        )
        return
    kind = class_of(backbone)
    width = backbone.get("in_channels", _arguments(kind).get("in_channels", 3))
    if str(getattr(kind, "__module__", "")).startswith("mmdet.") and width != channels:
        yield Finding(
            "error",
            what,
            f"images are loaded with {channels} channel{'s' * (channels > 1)}, "
            f"and {kind.__name__} takes {width}",
            f"set model.backbone.in_channels={channels}, or color_type of LoadImageFromFile",
        )


def _reading(which: str, cfg: Mapping[str, Any], found: list[Source]) -> Iterator[Finding]:
    source = yield from read_source(which, cfg)
    if source is not None:
        found.append(source)


def _keys(what: str, coco: Mapping[str, Any], wanted: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Whether each entry of an annotation file has what is read of it."""
    for part, keys in wanted.items():
        for key in keys:
            without = sum(key not in one for one in coco[part])
            if without:
                total = len(coco[part])
                remedy = (
                    f"add it to the file{'; the area of a box is width × height' if key == 'area' else ''}"
                )
                yield Finding("error", what, f"{without} of {total} {part} have no '{key}'", remedy)


def _images_elsewhere(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether images come from no folder of this machine, or are read by another transform than mmcv's."""
    for part in parts:
        loads = [one for one in part.get("pipeline") or () if _called(one, "LoadImageFromFile")]
        if not loads or any(is_remote(one) for one in loads):
            return True
    return False


def _same_classes(case: Case, which: Sequence[str]) -> Iterator[Finding]:
    """Parts of one data set, and training and validation, number the same classes in the same order."""
    orders = {
        name: list(dict.fromkeys(classes_of(part) for part in _parts(case, name) if classes_of(part)))
        for name in which
    }
    for name, found in orders.items():
        if len(found) > 1:
            yield Finding(
                "error",
                f"{name}: classes",
                "the parts of the data set differ: " + " against ".join(map(shortened, found)),
                "give all parts the same metainfo.classes, in the same order",
            )
    given = {name: found[0] for name, found in orders.items() if found}
    if "train" in given and "val" in given and given["train"] != given["val"]:
        yield Finding(
            "error",
            "train and val: classes",
            "they differ: " + " against ".join(shortened(given[name]) for name in ("train", "val")),
            "give both data loaders the same metainfo.classes, in the same order",
        )


def _parts(case: Case, which: str) -> list[Any]:
    return list(innermost((case.cfg.get(f"{which}_dataloader") or {}).get("dataset")))


def _heads(case: Case, which: Sequence[str]) -> Iterator[Finding]:
    """Whether the heads are for as many classes as the data sets have."""
    names = next((names for name in which for part in _parts(case, name) if (names := classes_of(part))), ())
    if not names:
        raise NotExamined("the data set's config names no classes")
    for place, count in heads_of(case.cfg.get("model") or {}):
        if count != len(names):
            yield Finding(
                "error",
                "head: classes",
                f"{place}.num_classes is {count}; the data set has {len(names)}: {shortened(names)}",
                f"set {place}.num_classes={len(names)}, or correct metainfo.classes",
            )


def heads_of(model: Mapping[str, Any], place: str = "model") -> Iterator[tuple[str, int]]:
    """The heads of a model's config that classify objects: where each stands, and for how many classes."""
    for name, part in model.items():
        if name in _OTHER_CLASSES:
            continue
        for index, one in enumerate(part if isinstance(part, (list, tuple)) else [part]):
            if not isinstance(one, Mapping):
                continue
            here = f"{place}.{name}" + (f"[{index}]" if isinstance(part, (list, tuple)) else "")
            if name == "roi_head":
                yield from heads_of(one, here)
            elif name.endswith("_head"):
                count = one.get("num_classes", _arguments(class_of(one)).get("num_classes"))
                if isinstance(count, int):
                    yield here, count


def _arguments(kind: Any) -> dict[str, Any]:
    """The defaults of a class's arguments, with those of the classes below it."""
    defaults: dict[str, Any] = {}
    for one in reversed(getattr(kind, "__mro__", ())):
        if "__init__" in vars(one) and one is not object:
            parameters = inspect.signature(one).parameters.values()
            defaults.update({p.name: p.default for p in parameters if p.default is not p.empty})
    return defaults


def _evaluators(case: Case, which: str) -> Iterator[Finding]:
    evaluators = case.cfg.get(f"{which}_evaluator")
    option = f"{which}_evaluator"
    if not evaluators:
        yield Finding(
            "error",
            option,
            f"the config has {which}_dataloader and no {option}",
            f"add {option}=dict(type='CocoMetric', ann_file=…), or set {which}_dataloader and {which}_cfg to "
            "None",
        )
        return
    for one in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        yield from collect(option, partial(_evaluator, case, which, one))


def _is_formatted(case: Case, which: str) -> bool:
    """Whether results are only written for a server, so that there are no annotations to look at."""
    found = case.cfg.get(f"{which}_evaluator") or []
    found = found if isinstance(found, (list, tuple)) else [found]
    return any(one.get("format_only") for one in found)


def _evaluator(case: Case, which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Its type, its file, and whether that file is of the data set's images and classes."""
    option = f"{which}_evaluator"
    kind = class_of(cfg, METRICS)
    if kind is None:
        near = difflib.get_close_matches(str(cfg.get("type")), METRICS.module_dict, n=1)
        yield Finding(
            "error",
            option,
            f"there is no metric {type_of(cfg)!r}",
            f"did you mean {near[0]}?" if near else f"valid are: {', '.join(sorted(METRICS.module_dict))}",
        )
        return
    file = cfg.get("ann_file")
    if not file or "://" in str(file) or is_remote(cfg):
        return
    path = Path(str(file))
    if not path.is_file():
        yield Finding("error", option, f"no file {path}", f"{where_from(path)}, or correct {option}.ann_file")
        return
    sources = case.sources.get(which) or []
    if not sources:  # which was said where they were read
        return
    if not (isinstance(kind, type) and issubclass(kind, CocoMetric)):
        raise NotExamined(f"whether {path} is of the images of {which}_dataloader")
    same = [source for source in sources if source.file.resolve() == path.resolve()]
    coco = same[0].coco if same else json.loads(path.read_text(encoding="utf-8"))
    yield from _keys(option, coco, _EVALUATED)
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


def _called(cfg: Mapping[str, Any], name: str) -> bool:
    """Whether a config means the transform of this name, or a subclass of it."""
    return is_kind(cfg, TRANSFORMS.get(name), registry=TRANSFORMS)
