"""Annotation files against the config: paths, classes, counts, boxes, images; train against val."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset

from mmkd.doctor.boxes import examine_boxes
from mmkd.doctor.case import Case, annotation_file, innermost
from mmkd.doctor.findings import Finding, NotExamined, collect, shortened
from mmkd.doctor.images import examine_images, examine_overlap
from mmkd.registry import DATASETS

_MANY_EMPTY = 0.5


@dataclass(frozen=True)
class Source:
    """One data set of the config, its annotations read.

    Attributes:
        which: ``train`` or ``val``, for messages.
        file: the annotation file.
        folder: of the images.
        classes: the config's, or the data set type's own.
        numbered_by_file: mmdet numbers its classes by the order of the file, as `CocoDataset` does.
        coco: what the file holds.
    """

    which: str
    file: Path
    folder: Path
    classes: tuple[str, ...]
    numbered_by_file: bool
    coco: Mapping[str, Any]


def examine_dataset(case: Case) -> Iterator[Finding]:
    """All data sets of training and validation, one after the other, then the two together."""
    sources: dict[str, list[Source]] = {"train": [], "val": []}
    for which, found in sources.items():
        loader = case.cfg.get(f"{which}_dataloader")
        if not loader:
            yield Finding("warning", which, f"the config has no {which}_dataloader")
            continue
        for cfg in innermost(loader["dataset"]):
            yield from collect(f"{which}: annotations", _reading(which, cfg, found))
    for source in [*sources["train"], *sources["val"]]:
        yield from collect(f"{source.which}: classes", partial(examine_classes, source))
        yield from collect(f"{source.which}: boxes", partial(examine_boxes, source.which, source.coco))
        yield from collect(
            f"{source.which}: image files",
            partial(examine_images, source.which, source.folder, source.coco["images"], case.images),
        )
    orders = {which: {source.classes for source in found} for which, found in sources.items() if found}
    if len(orders) == 2 and orders["train"] != orders["val"]:
        yield Finding(
            "error",
            "train and val: classes",
            "they differ: " + " against ".join(shortened(next(iter(order))) for order in orders.values()),
            "give both data loaders the same metainfo.classes, in the same order",
        )
    if all(sources.values()):
        images = {
            which: [(of.folder, image) for of in found for image in of.coco["images"]]
            for which, found in sources.items()
        }
        yield from collect("train and val", lambda: examine_overlap(images["train"], images["val"]))


def _reading(which: str, cfg: Mapping[str, Any], found: list[Source]) -> Callable[[], Iterator[Finding]]:
    def read() -> Iterator[Finding]:
        source = yield from read_source(which, cfg)
        if source is not None:
            found.append(source)

    return read


def read_source(which: str, cfg: Mapping[str, Any]) -> Generator[Finding, None, Source | None]:
    """Find and read the files of a data set; the generator's value is the `Source`, or ``None``."""
    prefix = cfg.get("data_prefix") or {}
    folder = (prefix.get("img") or prefix.get("img_path")) if isinstance(prefix, Mapping) else prefix
    what = f"{which}: annotations"
    path, images = annotation_file(cfg), Path(cfg.get("data_root") or "", folder or "")
    if path is None:
        raise NotExamined(f"a {cfg.get('type')} without a file of annotations on this machine")
    option = f"{which}_dataloader.dataset"
    there = True
    if not path.is_file():
        yield Finding(
            "error", what, f"no file {path}", f"download it, or correct {option}.ann_file or data_root"
        )
        there = False
    if not images.is_dir():
        yield Finding("error", f"{which}: images", f"no folder {images}", f"correct {option}.data_prefix")
        there = False
    if not there:
        return None
    if path.suffix != ".json":
        raise NotExamined(f"{path} is no COCO file; only such are read here")
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        coco, problem = None, str(error)
    else:
        problem = "it lacks images, annotations or categories"
    if not (isinstance(coco, dict) and all(isinstance(coco.get(key), list) for key in _KEYS)):
        yield Finding(
            "error",
            what,
            f"{path} cannot be read: {problem}",
            "download it again, or convert it to COCO's format",
        )
        return None
    return Source(which, path, images, _classes(cfg), _is_plain(cfg), coco)


_KEYS = ("images", "annotations", "categories")


def examine_classes(source: Source) -> Iterator[Finding]:
    """Whether the config's classes are the file's, and how often each is there."""
    what = f"{source.which}: classes"
    names = {category["id"]: str(category["name"]) for category in source.coco["categories"]}
    given = list(names.values())
    unknown = [name for name in source.classes if name not in given]
    if unknown:
        folded = {name.strip().lower(): name for name in given}
        cased = {name: folded[name.strip().lower()] for name in unknown if name.strip().lower() in folded}
        found = f"not in the file: {shortened(unknown)}; there: {shortened(given, 12)}"
        if cased:
            found += "; differently written: " + shortened(f"{a} is {b}" for a, b in cased.items())
        if len(unknown) == len(source.classes):
            found = f"none of the config's classes matches; {found}"
        yield Finding(
            "error",
            what,
            found,
            f"{source.which}_dataloader.dataset.metainfo=dict(classes=…) with the file's own spelling, "
            "and as many in model.bbox_head.num_classes",
        )
    in_file = [name for name in given if name in source.classes]
    if source.numbered_by_file and not unknown and in_file != list(source.classes):
        wrong = [f"{there} is called {here}" for here, there in zip(source.classes, in_file) if here != there]
        yield Finding(
            "error",
            what,
            f"in another order than in the file, by which mmdet numbers them: {shortened(wrong)}",
            f"metainfo=dict(classes={tuple(in_file)})",
        )
    counts = Counter(names.get(one.get("category_id")) for one in source.coco["annotations"])
    table = ", ".join(f"{name} {counts[name]}" for name in source.classes if name in given)
    without = [name for name in source.classes if name in given and not counts[name]]
    if without:
        yield Finding(
            "warning",
            what,
            f"no box of {shortened(without)}",
            "nothing is learnt of them, and they are not scored; leave them out or add images",
        )
    others = [name for name in given if name not in source.classes]
    if not unknown:
        tail = f"; in the file and left out: {shortened(others)}" if others else ""
        yield Finding("ok", what, f"boxes: {_short(table)}{tail}")
    strange = counts[None]
    if strange:
        yield Finding(
            "error", what, f"{strange} boxes of a category_id that the file does not list", "mend it"
        )
    used = {one.get("image_id") for one in source.coco["annotations"] if names.get(one.get("category_id"))}
    images = source.coco["images"]
    empty = sum(image["id"] not in used for image in images)
    share = empty / max(1, len(images))
    text = f"{len(images)} images, {empty} without a box ({share:.0%})"
    if empty == len(images):
        yield Finding(
            "error", f"{source.which}: images", text, f"the annotations are of other images: {source.file}"
        )
    elif share > _MANY_EMPTY:
        yield Finding(
            "warning",
            f"{source.which}: images",
            text,
            "filter_cfg=dict(filter_empty_gt=True) leaves them out of training",
        )
    else:
        yield Finding("ok", f"{source.which}: images", text)


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most].rpartition(",")[0] + ", …"


def _kind(cfg: Mapping[str, Any]) -> Any:
    kind = cfg.get("type")
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def _is_plain(cfg: Mapping[str, Any]) -> bool:
    """LVIS and Objects365 number their classes otherwise."""
    return getattr(_kind(cfg), "load_data_list", None) is CocoDataset.load_data_list


def _classes(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    given = (cfg.get("metainfo") or {}).get("classes")
    if given is None:
        given = getattr(_kind(cfg), "METAINFO", {}).get("classes", ())
    return (given,) if isinstance(given, str) else tuple(given)
