"""The user's data set: its format, its splits as COCO files, its problems, and its sizes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmkd.data import voc, yolo
from mmkd.data.coco_folder import find_coco
from mmkd.data.conversion import PROBLEMS, Converted, Split
from mmkd.data.split import split_by_hash
from mmkd.data.yolo_yaml import find_yaml
from mmkd.doctor.annotations import examine_keys
from mmkd.doctor.boxes import examine_boxes
from mmkd.doctor.findings import Finding, collect
from mmkd.doctor.images import examine_files, examine_images, examine_overlap
from mmkd.durable import write_json
from mmkd.errors import UserError

KINDS = ("coco", "yolo", "voc")
# Without a validation split, every fifth image is used for validation.
EVERY = 5
_OPENED = 20
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_WANTED = {
    "annotations": ("image_id", "category_id", "bbox", "area", "iscrowd"),
    "images": ("id", "file_name", "width", "height"),
}


@dataclass(frozen=True)
class DataSet:
    """Facts about a data set.

    Attributes:
        kind: ``coco``, ``yolo`` or ``voc``.
        root: its folder, as given.
        classes: class names, in the order of the labels.
        splits: name → split; ``train`` and ``val`` always exist.
        boxes: number of training boxes of each class.
        longest_side: median longest side of the training images, in pixels.
        object_sizes: 10 %, 50 % and 90 % quantiles of the square root of box areas, relative to the longest
            side of the image.
        made_val: whether the validation split was taken from the training split.
        remarks: problems that do not prevent training, one line each.
    """

    kind: str
    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    boxes: Mapping[str, int]
    longest_side: int
    object_sizes: tuple[float, float, float]
    made_val: bool
    remarks: tuple[str, ...]

    @property
    def test(self) -> Split:
        """The split for the final evaluation: ``test``, or else validation."""
        return self.splits.get("test", self.splits["val"])


def read_dataset(data: str | Path, project: Path, own: Path, kind: str | None = None) -> DataSet:
    """Read a data set of any format; convert to COCO; split off a validation set if there is none.

    Args:
        data: its folder, or the ``data.yaml`` of YOLO labels.
        project: the project's folder, as the project's files will refer to it.
        own: temporary folder for the project's files until it is complete.
        kind: ``coco``, ``yolo`` or ``voc``; ``None`` to detect it.

    Raises:
        UserError: no data set is found, or training on it would fail.
    """
    path = Path(data)
    if not path.exists():
        raise UserError(
            "Data not found.",
            expected="a folder with a COCO, YOLO or VOC data set",
            found=f"no {path} below {Path.cwd()}",
            remedy="correct --data",
        )
    kind, converted = _read(path, own, kind)
    remarks = converted.problems.lines()
    folder = next(iter(converted.splits.values())).annotations.parent
    if remarks:
        remarks.append(f"all places: {_in_project_path(folder / PROBLEMS, own, project)}")
    contents = {name: json.loads(split.annotations.read_bytes()) for name, split in converted.splits.items()}
    if kind == "coco":
        remarks += _examined(converted, contents)
    if "train" not in contents:
        raise UserError(
            "No training images found.",
            expected="a split called train",
            found=", ".join(contents),
            remedy="rename one of them to train, or correct the data set",
        )
    splits = dict(converted.splits)
    made_val = "val" not in splits
    if made_val:
        parts = split_by_hash(contents["train"], EVERY)
        for name, content in zip(("train", "val"), parts, strict=True):
            file = own / f"annotations/{name}.json"
            write_json(file, content, indent=None)
            counts = len(content["images"]), len(content["annotations"])
            splits[name] = Split(name, file, converted.splits["train"].images, *counts)
            contents[name] = content
    splits = {name: _in_project(split, own, project) for name, split in splits.items()}
    for name, split in splits.items():
        if not split.box_count:
            raise UserError(
                f"No boxes in {name}.",
                expected="images with boxes",
                found=f"{split.image_count} images without boxes in {split.annotations}"
                + "".join(f"\n            {line}" for line in converted.problems.lines()),
                remedy="correct the labels" if not made_val else "add images: there are too few to split",
            )
    sides, sizes = _sizes(contents["train"])
    low, middle, high = np.quantile(sizes, [0.1, 0.5, 0.9]).tolist()
    names = {one["id"]: str(one["name"]) for one in contents["train"]["categories"]}
    found = Counter(names[one["category_id"]] for one in contents["train"]["annotations"])
    boxes = {name: found[name] for name in converted.classes}
    remarks += [f"no boxes of {name} in training" for name, count in boxes.items() if not count]
    return DataSet(
        kind,
        path if path.is_dir() else path.parent,
        converted.classes,
        splits,
        boxes,
        round(float(np.median(sides))),
        (low, middle, high),
        made_val,
        tuple(remarks),
    )


def _read(path: Path, own: Path, kind: str | None) -> tuple[str, Converted]:
    if kind == "coco" or (kind is None and path.is_dir()):
        found = find_coco(path, without=(yolo.MADE_BY, voc.MADE_BY)) if path.is_dir() else None
        if found is not None:
            return "coco", found
    looked = kind is None and path.suffix not in _ARCHIVES
    if kind == "yolo" or (looked and (path.is_file() or _holds(find_yaml, path))):
        return "yolo", yolo.convert_yolo(path, _out(path, own))
    if kind == "voc" or (looked and _holds(voc.find_voc, path)):
        return "voc", voc.convert_voc(path, _out(path, own))
    raise UserError(
        f"No data set found in {path}.",
        expected="COCO (annotations/*.json), YOLO (data.yaml and labels) or VOC (Annotations/*.xml)",
        found=f"no annotations of {'these kinds' if kind is None else kind} in "
        + (", ".join(sorted(one.name for one in path.iterdir())[:8]) if path.is_dir() else "a file")
        + (" (empty)" if path.is_dir() and not any(path.iterdir()) else ""),
        remedy=_near(path) or "correct --data: the folder that contains annotations and images",
    )


def _near(path: Path) -> str | None:
    """What to do where the data set is close by."""
    if path.is_file():
        return "unpack it, then give the folder" if path.suffix in _ARCHIVES else None
    for parent in list(path.absolute().parents)[:2]:
        others = any((parent / name).is_dir() for name in ("annotations", "Annotations"))
        if others or _holds(find_yaml, parent):
            return f"did you mean --data {parent}?"
    if next(path.glob("labels/**/*.txt"), None) is not None:
        return (
            f"these look like YOLO labels: write {path / 'data.yaml'} with names: [class, class, …] in the "
            "order of the labels, and with train: and val:, the folders of images"
        )
    return None


def _holds(find: Callable[[Path], object], path: Path) -> bool:
    try:
        find(path)
    except UserError:
        return False
    return True


def _out(path: Path, own: Path) -> Path | None:
    """Where to write annotations: ``None`` for beside the data, or a project folder if that is read-only."""
    folder = path if path.is_dir() else path.parent
    return None if os.access(folder, os.W_OK) else own / "annotations"


def _in_project(split: Split, own: Path, project: Path) -> Split:
    return replace(split, annotations=_in_project_path(split.annotations, own, project))


def _in_project_path(path: Path, own: Path, project: Path) -> Path:
    return project / path.relative_to(own) if path.is_relative_to(own) else path


def _examined(found: Converted, contents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The doctor's warnings about COCO files; its errors become a `UserError`."""
    remarks = []
    for finding in _findings(found, contents):
        if finding.level == "error":
            raise UserError(
                f"Cannot train on this data set: {finding.what}.",
                expected="annotations and images that match",
                found=finding.found,
                remedy=finding.remedy,
            )
        if finding.level == "warning":
            remarks.append(f"{finding.what}: {finding.found}; {finding.remedy}")
    return remarks


def _findings(found: Converted, contents: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for name, split in found.splits.items():
        content = contents[name]
        what = f"{name}: annotations"
        yield from collect(what, examine_keys, what, content, _WANTED)
        yield from collect(f"{name}: boxes", examine_boxes, name, content)
        yield from collect(f"{name}: files", examine_files, name, split.images, content["images"])
        images = split.images, content["images"], _OPENED
        yield from collect(f"{name}: images", examine_images, name, *images)
    parts = {
        name: [(split.images, image) for image in contents[name]["images"]]
        for name, split in found.splits.items()
    }
    if "train" in parts and "val" in parts:
        yield from collect("train and val", examine_overlap, parts["train"], parts["val"])


def _sizes(content: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """The images' longest sides in pixels, and object sizes relative to them."""
    sides = {one["id"]: max(one["width"], one["height"]) for one in content["images"]}
    sizes = [
        max(0.0, one["bbox"][2] * one["bbox"][3]) ** 0.5 / sides[one["image_id"]]
        for one in content["annotations"]
        if not one.get("iscrowd")
    ]
    return list(sides.values()), sizes or [0.0]
