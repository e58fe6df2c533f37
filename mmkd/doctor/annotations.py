"""Compares annotation files with the config: paths, classes, counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset

from mmkd.datasets import annotation_file, class_names, where_from
from mmkd.doctor.findings import Finding, NotExamined, shortened
from mmkd.doctor.setup import Source
from mmkd.errors import nearest, type_of
from mmkd.registry import DATASETS, class_of

_MANY_EMPTY = 0.5


def read_source(which: str, cfg: Mapping[str, Any]) -> Generator[Finding, None, Source | None]:
    """Find and read the files of a data set; the generator's value is the `Source`, or ``None``."""
    prefix = cfg.get("data_prefix") or {}
    folder = (prefix.get("img") or prefix.get("img_path")) if isinstance(prefix, Mapping) else prefix
    what = f"{which}: annotations"
    path, images = annotation_file(cfg), Path(cfg.get("data_root") or "", folder or "")
    if path is None:
        raise NotExamined(f"a {type_of(cfg)} without a local annotation file")
    option = f"{which}_dataloader.dataset"
    there = True
    if not path.is_file():
        yield Finding.error(
            what, f"no file {path}", f"{where_from(path)}, or correct {option}.ann_file or data_root"
        )
        there = False
    if not images.is_dir():
        yield Finding.error(f"{which}: images", f"no folder {images}", f"correct {option}.data_prefix")
        there = False
    if not there:
        return None
    kind = class_of(cfg, DATASETS)
    if path.suffix != ".json" or getattr(kind, "parse_data_info", None) is not CocoDataset.parse_data_info:
        raise NotExamined(f"{path} is not a COCO file, or {type_of(cfg)} reads it in its own way")
    coco = yield from read_coco(what, path)
    return None if coco is None else Source(which, path, images, classes_of(cfg), _is_plain(cfg), coco)


def read_coco(what: str, path: Path) -> Generator[Finding, None, Mapping[str, Any] | None]:
    """Read an annotation file in COCO format; the generator's value is its content, or ``None``."""
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        coco, problem = None, str(error)
    else:
        problem = f"missing keys {', '.join(_KEYS)}"
        if isinstance(coco, dict):
            problem = f"no list of {shortened(key for key in _KEYS if not _has_dicts(coco.get(key)))}"
            if all(_has_dicts(coco.get(key)) for key in _KEYS):
                return coco
    yield Finding.error(
        what, f"cannot read {path}: {problem}", "download it again, or convert it to COCO format"
    )
    return None


_KEYS = ("images", "annotations", "categories")


def _has_dicts(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(one, dict) for one in part)


def examine_names(which: str, cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that a data set's config lists its classes as names.

    Args:
        which: ``train``, ``val`` or ``test``, for messages.
        cfg: the data set's config.
    """
    problem = _problem(cfg.get("metainfo"))
    if problem is not None:
        yield Finding.error(f"{which}: classes", *problem)


def _problem(metainfo: Any) -> tuple[str, str] | None:
    """What is wrong with a config's classes, and what to do; ``None`` if nothing is."""
    if metainfo is None:
        return None
    if not isinstance(metainfo, Mapping):
        return f"metainfo is a {type(metainfo).__name__}", "write a dict: metainfo=dict(classes=('…', '…'))"
    if "classes" not in metainfo:
        other = next((key for key in metainfo if nearest(str(key).lower(), ["classes"], cutoff=0.75)), None)
        return None if other is None else (f"nothing reads metainfo.{other}", "rename it to metainfo.classes")
    names = metainfo["classes"]
    if isinstance(names, str):
        if Path(names).is_file():  # mmengine reads the file
            return None
        written = tuple(name.strip() for name in names.split(",") if name.strip())
        remedy = f"write a tuple, with its comma: classes={written}"
        if "/" in names or Path(names).suffix:
            remedy = f"{where_from(Path(names))}, or write a tuple: classes=('…', '…')"
        return f"metainfo.classes is the string {names!r}, so each letter becomes a class", remedy
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return f"metainfo.classes is {names!r}, not a list of names", "write classes=('…', '…')"
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        return f"metainfo.classes lists {shortened(twice)} more than once", "list each class once"
    return None


def examine_classes(source: Source, *, unlabelled: bool = False) -> Iterator[Finding]:
    """Check that the config's classes match the file, and count their boxes.

    Args:
        source: the data set.
        unlabelled: whether boxes are not needed, because the task's losses have no weight.
    """
    what = f"{source.which}: classes"
    names = {category["id"]: str(category["name"]) for category in source.coco["categories"]}
    given = list(names.values())
    unknown = [name for name in source.classes if name not in given]
    if unknown:
        folded = {name.strip().lower(): name for name in given}
        cased = {name: folded[name.strip().lower()] for name in unknown if name.strip().lower() in folded}
        found = f"not in the file: {shortened(unknown)}; in the file: {shortened(given, 12)}"
        if cased:
            found += "; differently written: " + shortened(f"{a} is {b}" for a, b in cased.items())
        if len(unknown) == len(source.classes):
            found = f"none of the config's classes match; {found}"
        yield Finding.error(
            what,
            found,
            f"set {source.which}_dataloader.dataset.metainfo=dict(classes=…) as spelled in the "
            "file, and model.bbox_head.num_classes to their number",
        )
    in_file = [name for name in given if name in source.classes]
    if source.numbered_by_file and not unknown and in_file != list(source.classes):
        wrong = [
            f"{there} is labelled {here}" for here, there in zip(source.classes, in_file) if here != there
        ]
        yield Finding.error(
            what,
            f"order differs from the file, which mmdet uses for the labels: {shortened(wrong)}",
            f"metainfo=dict(classes={tuple(in_file)})",
        )
    counts = Counter(names.get(one.get("category_id")) for one in source.coco["annotations"])
    table = ", ".join(f"{name} {counts[name]}" for name in source.classes if name in given)
    without = [name for name in source.classes if name in given and not counts[name]]
    if without and not unlabelled:
        yield Finding.warning(
            what,
            f"no boxes of {shortened(without)}",
            "these classes are neither learned nor evaluated; remove them or add images",
        )
    others = [name for name in given if name not in source.classes]
    if not unknown:
        tail = f"; in the file but not used: {shortened(others)}" if others else ""
        yield Finding.ok(what, f"boxes: {_short(table)}{tail}")
    strange = counts[None]
    if strange:
        yield Finding.error(what, f"{strange} boxes have an unknown category_id", "fix it")
    used = {
        one.get("image_id")
        for one in source.coco["annotations"]
        if names.get(one.get("category_id")) in source.classes
    }
    images = source.coco["images"]
    empty = sum(image.get("id") not in used for image in images)
    share = empty / max(1, len(images))
    text = f"{len(images)} images, {empty} without boxes ({share:.0%})"
    if unlabelled:
        yield Finding.ok(f"{source.which}: images", f"{text}; not needed with task_loss_weight=0")
    elif len(unknown) < len(source.classes) and not any(counts[name] for name in source.classes):
        yield Finding.error(
            f"{source.which}: images",
            f"{text} of the config's classes",
            f"check {source.file} and metainfo.classes; task_loss_weight=0 distils without labels",
        )
    elif len(unknown) < len(source.classes) and share > _MANY_EMPTY:
        yield Finding.warning(
            f"{source.which}: images",
            text,
            "filter_cfg=dict(filter_empty_gt=True) excludes them from training",
        )
    else:
        yield Finding.ok(f"{source.which}: images", text)


def examine_keys(
    what: str, coco: Mapping[str, Any], wanted: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """Check that each entry of an annotation file has the required keys.

    Args:
        what: name for messages.
        coco: the file's content.
        wanted: the required keys, for ``annotations`` or ``images``.
    """
    for part, keys in wanted.items():
        for key in keys:
            without = sum(key not in one for one in coco[part])
            if without:
                total = len(coco[part])
                remedy = (
                    f"add it to the file{'; the area of a box is width × height' if key == 'area' else ''}"
                )
                yield Finding.error(what, f"{without} of {total} {part} have no '{key}'", remedy)


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most].rpartition(",")[0] + ", …"


def _is_plain(cfg: Mapping[str, Any]) -> bool:
    """Whether classes are numbered as in COCO, unlike LVIS and Objects365."""
    return getattr(class_of(cfg, DATASETS), "load_data_list", None) is CocoDataset.load_data_list


def classes_of(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes in a data set's config, or else of its type; empty if neither lists any."""
    if _problem(cfg.get("metainfo")) is not None:
        return ()
    given = (cfg.get("metainfo") or {}).get("classes")
    if isinstance(given, str) and Path(given).is_file():
        given = Path(given).read_text(encoding="utf-8").splitlines()
    if given is None:
        given = (getattr(class_of(cfg, DATASETS), "METAINFO", None) or {}).get("classes", ())
    return class_names({"classes": given}) or ()
