"""Reads YOLO label files, and notes their problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmkd.data.conversion import Box, ImageFile, Problems, has_area, relative
from mmkd.data.image_lists import IMAGES

# Ultralytics accepts numbers this far outside [0, 1].
_TOLERANCE = 0.01
_NO_LABELS = ("classes.txt", "notes.txt", "readme.txt", "train.txt", "val.txt", "test.txt")


def label_file(image: Path) -> Path:
    """The path of an image's labels: the last folder ``images`` in its path becomes ``labels``.

    Example:
        >>> label_file(Path("data/images/train/a.jpg")).as_posix()
        'data/labels/train/a.txt'
    """
    return (_labels_folder(image.parent) / image.name).with_suffix(".txt")


def _labels_folder(images: Path) -> Path:
    parts = list(images.parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            return Path(*parts)
    return images


@dataclass(frozen=True)
class LabelReader:
    """Reads label files.

    Args:
        class_count: number of classes.
        keypoints: whether rows continue with points after the box.
        drop_duplicates: whether to drop rows that repeat another row of the same file.
        root: the data set's root, for messages.
        problems: where to note problems.
    """

    class_count: int
    keypoints: bool
    drop_duplicates: bool
    root: Path
    problems: Problems

    def boxes(self, image: ImageFile) -> list[Box] | None:
        """The boxes of an image; ``None`` if a row is invalid."""
        label, add = label_file(image.path), self.problems.add
        name = relative(label, self.root)
        if not label.is_file():
            add("image without label file, background", relative(image.path, self.root))
            return []
        try:
            rows = label.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            add("unreadable label file, image skipped", f"{name} ({error})")
            return None
        boxes: list[Box] = []
        seen: set[tuple[float, ...]] = set()
        wrong = False
        for number, row in enumerate(rows, start=1):
            if not row.strip():
                continue
            place, values = f"{name}:{number}", self._values(row)
            problem = _what_is_wrong(values, self.class_count)
            if problem is not None:
                add(f"{problem}, image skipped", place)
                wrong = True
                continue
            if values in seen:
                add(f"duplicate row, {'skipped' if self.drop_duplicates else 'kept'}", place)
                if self.drop_duplicates:
                    continue
            seen.add(values)
            box = _box(values, image)
            if has_area(box, image.width, image.height):
                boxes.append(box)
            else:
                add("box without area, skipped", place)
        return None if wrong else boxes

    def _values(self, row: str) -> tuple[float, ...]:
        try:
            values = tuple(float(word) for word in row.split())
        except ValueError:
            return ()
        return values[:5] if self.keypoints else values


def _what_is_wrong(values: Sequence[float], class_count: int) -> str | None:
    outline = len(values) >= 7 and len(values) % 2 == 1
    if not (len(values) == 5 or outline) or not math.isfinite(values[0]) or values[0] % 1:
        return "row that is neither `class x y w h` nor `class x1 y1 x2 y2 …`"
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values[1:]):
        return "label out of range 0 to 1"
    if not 0 <= values[0] < class_count:
        return f"class beyond the {class_count} of data.yaml"
    return None


def _box(values: Sequence[float], image: ImageFile) -> Box:
    label, numbers = int(values[0]), values[1:]
    if len(numbers) == 4:
        x, y, w, h = numbers
        corners = ((x - w / 2), (y - h / 2), (x + w / 2), (y + h / 2))
        return Box(label, _scaled(corners, image))
    xs, ys = numbers[::2], numbers[1::2]
    outline = tuple(v for x, y in zip(xs, ys) for v in (x * image.width, y * image.height))
    return Box(label, _scaled((min(xs), min(ys), max(xs), max(ys)), image), outline)


def _scaled(
    corners: tuple[float, float, float, float], image: ImageFile
) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = corners
    return x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height


def note_orphans(images: Sequence[Path], root: Path, problems: Problems) -> None:
    """Note label files without an image, in the folders with these images' labels."""
    known = {label_file(image) for image in images}
    for folder in sorted({label.parent for label in known}):
        for file in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            if file not in known and file.name.lower() not in _NO_LABELS and not _has_image(file):
                problems.add("label without image", relative(file, root))


def _has_image(label: Path) -> bool:
    """Whether a label belongs to an image of another split, which may share the folder."""
    folder = label.parent
    parts = list(folder.parts)
    if "labels" in parts:
        parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
    return any((Path(*parts) / f"{label.stem}{end}").exists() for end in IMAGES)
