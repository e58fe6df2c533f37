"""Shared code of the annotation readers: open images, collect problems, write COCO files."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from mmkd.durable import write_file, write_json
from mmkd.errors import UserError

PROBLEMS = "problems.txt"
_SHOWN = 3
_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)


@dataclass(frozen=True)
class Box:
    """An object: its label from 0, corners in pixels, outline if available, and whether it is ignored."""

    label: int
    corners: tuple[float, float, float, float]
    outline: tuple[float, ...] = ()
    ignored: bool = False


@dataclass(frozen=True)
class ImageFile:
    """An image file: its size in pixels as loaded by mmcv, and a digest of its content."""

    path: Path
    width: int
    height: int
    digest: bytes


@dataclass
class Problems:
    """Problems of a data set: places (files, or lines of files) by kind of problem."""

    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: object) -> None:
        """Add a place to a kind of problem."""
        self.places.setdefault(kind, []).append(str(place))

    def counts(self) -> dict[str, int]:
        """The number of places per kind."""
        return {kind: len(places) for kind, places in self.places.items()}

    def lines(self) -> list[str]:
        """One line per kind: count, kind and the first places."""
        return [
            f"{len(places)} × {kind}: {', '.join(places[:_SHOWN])}"
            + (f", … {len(places) - _SHOWN} more" if len(places) > _SHOWN else "")
            for kind, places in self.places.items()
        ]

    def write(self, path: Path) -> None:
        """Write all places to a text file; without problems, remove the file of an earlier conversion."""
        text = "".join(
            f"{len(places)} × {kind}\n" + "".join(f"  {place}\n" for place in places)
            for kind, places in self.places.items()
        )
        if text:
            write_file(path, text.encode())
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Split:
    """One part of a converted data set.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        annotations: its COCO file.
        images: the folder that the file's names are relative to.
        image_count, box_count: the numbers of images and boxes in the file.
    """

    name: str
    annotations: Path
    images: Path
    image_count: int
    box_count: int


@dataclass(frozen=True)
class Converted:
    """A converted data set: its root, class names in the order of the labels, splits by name, problems."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    problems: Problems

    def lines(self) -> list[str]:
        """A summary for the terminal: what was written and what is wrong."""
        written = [
            f"{split.name}: {split.image_count} images, {split.box_count} boxes → {split.annotations}"
            for split in self.splits.values()
        ]
        return [f"classes: {', '.join(self.classes)}", *written, *self.problems.lines()]


def open_images(paths: Sequence[Path], root: Path, problems: Problems) -> list[ImageFile]:
    """Open image files in parallel; those that cannot be decoded become problems.

    The size is measured after EXIF rotation, because mmcv rotates images when it loads them.
    """
    found = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        opened = pool.map(_opened, paths)
        for path, image in zip(paths, tqdm(opened, total=len(paths), desc="reading images", disable=None)):
            if isinstance(image, ImageFile):
                found.append(image)
            else:
                problems.add("corrupt image, skipped", f"{relative(path, root)} ({image})")
    return found


def _opened(path: Path) -> ImageFile | str:
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if image.getexif().get(_EXIF_ORIENTATION) in _TURNED:
                width, height = height, width
            image.draft("L", (width // 8, height // 8))  # JPEG: an eighth also reveals a torn file
            image.load()
    except UnidentifiedImageError:  # whose message names an object in memory
        return "not an image, or of a format that Pillow does not know"
    except Exception as error:  # Pillow's decoders raise nearly any exception
        return str(error) or type(error).__name__
    return ImageFile(path, width, height, hashlib.sha256(content).digest())


def note_shared(images: Mapping[str, Sequence[ImageFile]], root: Path, problems: Problems) -> None:
    """Note images with the same content in several splits.

    Args:
        images: the images per split name.
        root: the folder that noted paths are relative to.
        problems: receives them.
    """
    seen: dict[bytes, tuple[str, Path]] = {}
    for split, files in images.items():
        for file in files:
            other = seen.setdefault(file.digest, (split, file.path))
            if other[0] != split:
                pair = f"{relative(file.path, root)} = {relative(other[1], root)}"
                problems.add(f"same image in {other[0]} and {split}, kept; scores get too good", pair)


def relative(path: Path, folder: Path) -> str:
    """A path relative to a folder, with ``/``; unchanged if it is outside the folder."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def write_coco(
    path: Path,
    folder: Path,
    images: Sequence[tuple[ImageFile, Sequence[Box]]],
    classes: Sequence[str],
    made_by: str,
) -> int:
    """Write a COCO file: category ids from 1 in the order of the classes, image ids from 1.

    Boxes are clipped to their image and rounded to a hundredth of a pixel; those without area are dropped.

    Args:
        path: the file to write.
        folder: the folder that each ``file_name`` is relative to.
        images: the images with their boxes.
        classes: class names by label.
        made_by: the reader's name; files from other sources are not overwritten.

    Returns:
        The number of boxes written.

    Raises:
        UserError: a file from another source exists, or the file cannot be written.
    """
    _check_made_by(path, made_by)
    listed: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, (image, found) in enumerate(images, start=1):
        name = Path(os.path.relpath(image.path, folder)).as_posix()
        listed.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        for box in found:
            entry = _annotation(box, image)
            if entry is not None:
                boxes.append({"id": len(boxes) + 1, "image_id": number, **entry})
    content = {
        "info": {"made_by": made_by},
        "images": listed,
        "annotations": boxes,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }
    write_json(path, content, indent=None)
    return len(boxes)


def has_area(box: Box, width: int, height: int) -> bool:
    """Whether any part of a box is inside its image."""
    return min(_clipped(box, width, height)[2:]) > 0


def _annotation(box: Box, image: ImageFile) -> dict[str, Any] | None:
    x, y, w, h = _clipped(box, image.width, image.height)
    if w <= 0 or h <= 0:
        return None
    entry: dict[str, Any] = {"category_id": box.label + 1, "bbox": [x, y, w, h], "area": round(w * h, 2)}
    if box.outline:
        xs = [min(max(x, 0.0), image.width) for x in box.outline[::2]]
        ys = [min(max(y, 0.0), image.height) for y in box.outline[1::2]]
        pairs = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1])
        entry["area"] = round(abs(sum(x1 * y2 - x2 * y1 for x1, y1, x2, y2 in pairs)) / 2, 2)
        entry["segmentation"] = [[round(value, 2) for point in zip(xs, ys) for value in point]]
    return {**entry, "iscrowd": int(box.ignored)}


def _clipped(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box.corners
    x1, y1 = max(x1, 0.0), max(y1, 0.0)
    x2, y2 = min(x2, width), min(y2, height)
    return round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)


def _check_made_by(path: Path, made_by: str) -> None:
    if not path.exists():
        return
    try:
        other = json.loads(path.read_bytes())["info"]["made_by"]
    except (ValueError, KeyError, TypeError):
        other = None
    if other != made_by:
        raise UserError(
            f"This would overwrite {path}.",
            expected=f"no such file, or one created by {made_by}",
            found=f"one created by {other}" if isinstance(other, str) else "a file of unknown origin",
            remedy="move it away, or choose another folder for the annotations",
        )
