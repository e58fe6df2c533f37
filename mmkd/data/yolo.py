"""Converts YOLO labels, as written and read by Ultralytics, to COCO JSON: `convert_yolo`.

They are converted instead of read by a data set class because evaluation needs a COCO file anyway, and every
MMDetection tool (data sets, metrics, browsers, the doctor, comparisons) reads one. One conversion serves them
all, reports label problems before training, and avoids opening 100,000 text files at each start.

    python -m mmkd.data.yolo my_data/data.yaml
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmkd.data.conversion import (
    PROBLEMS,
    Box,
    Converted,
    ImageFile,
    Problems,
    Split,
    has_area,
    note_shared,
    open_images,
    relative,
    write_coco,
)
from mmkd.data.image_lists import IMAGES, listed_images
from mmkd.errors import UserError

MADE_BY = "mmkd.data.yolo"
SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
# Ultralytics accepts numbers this far outside [0, 1].
_TOLERANCE = 0.01
_NO_LABELS = ("classes.txt", "notes.txt", "readme.txt", "train.txt", "val.txt", "test.txt")


def convert_yolo(data: str | Path, out: str | Path | None = None, drop_duplicates: bool = False) -> Converted:
    """Write a COCO file for each split of a data set with YOLO labels.

    Category ids are 1, 2, … in the order of ``names``, image ids 1, 2, … in the order of the file names. Each
    ``file_name`` is relative to the image folder, `Split.images`. Rows are ``class x y w h``, or
    ``class x1 y1 x2 y2 …`` for an outline, which becomes ``segmentation``, all as fractions of the image
    size. An image without labels, or with an empty label file, is background. As in Ultralytics, an image
    that is unreadable or has an invalid row is left out: otherwise its unlabelled objects would be taught as
    background.

    Args:
        data: ``data.yaml``, or its folder. ``names`` is a list or mapping; ``train``, ``val`` and ``test``
            are folders, lists of folders, or ``.txt`` files of paths, relative to ``path``. For labels, the
            last ``images`` in a path is replaced by ``labels``; otherwise they are beside the image.
        out: folder for the COCO files; by default ``annotations`` in the data set's root. Its
            ``problems.txt`` lists every place of every problem.
        drop_duplicates: drop rows that repeat another row of the same file, as Ultralytics does. By default
            they are kept, so that the boxes match the published ones.

    Returns:
        Root, classes, splits and problems.

    Raises:
        UserError: the YAML file or a split is unreadable, no image has labels, or a file from another source
            would be overwritten.

    Example:
        >>> converted = convert_yolo("my_data/data.yaml")  # doctest: +SKIP
        >>> print("\\n".join(converted.lines()))  # doctest: +SKIP
        classes: WBC, RBC, Platelets
        train: 1008 images, 18616 boxes → my_data/annotations/train.json
    """
    path = find_yaml(data)
    content = _read_yaml(path)
    classes = _names(content, path)
    root = _root(content, path)
    folder = root / "annotations" if out is None else Path(out)
    problems = Problems()
    files = {name: _images(content, keys, root, path) for name, keys in SPLITS.items()}
    files = {name: found for name, found in files.items() if found}
    if not files:
        raise UserError(
            f"{path} lists no images.",
            expected="train, val or test: a folder, a list of folders, or a .txt file",
            found=", ".join(map(str, content)),
            remedy="add at least train: images/train",
        )
    opened = {name: open_images(sorted(found), root, problems) for name, found in files.items()}
    note_shared(opened, root, problems)
    reader = _Reader(len(classes), "kpt_shape" in content, drop_duplicates, root, problems)
    labelled = 0
    kept: dict[str, list[tuple[ImageFile, list[Box]]]] = {}
    for name, images in opened.items():
        kept[name] = []
        for image in images:
            boxes = reader.boxes(image)
            labelled += label_file(image.path).is_file()
            if boxes is not None:
                kept[name].append((image, boxes))
    for found in files.values():
        _note_orphans(found, root, problems)
    if not labelled:
        example = next(iter(files.values()))[0]
        raise UserError(
            "No image has labels.",
            expected=f"a label file per image, like {label_file(example)}",
            found=f"none for {sum(map(len, files.values()))} images",
            remedy="move the labels there, or correct the paths in the YAML file",
        )
    splits = {}
    for name, pairs in kept.items():
        images_folder = _common_folder(files[name])
        pairs = sorted(pairs, key=lambda pair: os.path.relpath(pair[0].path, images_folder))
        target = folder / f"{name}.json"
        count = write_coco(target, images_folder, pairs, classes, MADE_BY)
        splits[name] = Split(name, target, images_folder, len(pairs), count)
    problems.write(folder / PROBLEMS)
    return Converted(root, classes, splits, problems)


def find_yaml(data: str | Path) -> Path:
    """The YAML file of a YOLO data set.

    Args:
        data: the file, or a folder with ``data.yaml`` or exactly one other YAML file that contains ``names``.

    Raises:
        UserError: there is none, or several candidates.
    """
    path = Path(data)
    if path.is_file():
        return path
    found = [path / name for name in ("data.yaml", "data.yml") if (path / name).is_file()]
    found = found or [
        file for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if _has_names(file)
    ]
    if len(found) != 1:
        raise UserError(
            f"No data set YAML found in {path}.",
            expected="data.yaml with class names and image folders",
            found=", ".join(file.name for file in found) or ("none" if path.is_dir() else "no such path"),
            remedy="give the file itself",
        )
    return found[0]


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


def _has_names(file: Path) -> bool:
    try:
        return "names" in _read_yaml(file)
    except UserError:
        return False


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"Cannot read {path}.",
            expected="a YAML file in Ultralytics format",
            found=" ".join(str(error).split()),
            remedy="correct the file",
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a data.yaml: it has no keys like train, val, names")
    return content


def _names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if names is None and isinstance(count, int) and count > 0:
        names = [f"class_{label}" for label in range(count)]
    if isinstance(names, Mapping):
        labels = sorted(names, key=lambda label: int(label) if str(label).isdecimal() else -1)
        if [str(label) for label in labels] != [str(label) for label in range(len(labels))]:
            raise UserError(
                f"{path}: names has gaps.",
                expected=f"labels 0 to {len(names) - 1}",
                found=", ".join(map(str, names)),
                remedy="number all classes from 0",
            )
        names = [names[label] for label in labels]
    if not isinstance(names, (list, tuple)) or not names:
        raise UserError(
            f"{path} has no class names.",
            expected="names: [cat, dog], or a mapping {0: cat, 1: dog}",
            found=f"names: {names!r:.80}",
            remedy="add the names in the order of the labels",
        )
    names = tuple(str(name) for name in names)
    if count is not None and count != len(names):
        raise UserError(
            f"{path}: nc and names do not match.",
            expected=f"nc: {len(names)}, the number of names",
            found=f"nc: {count}; names: {', '.join(names[:12])}",
            remedy="correct the one that is wrong",
        )
    if len(set(names)) < len(names):
        raise UserError(
            f"{path} has duplicate class names.",
            expected="different names",
            found=", ".join(names[:12]),
            remedy="rename one of them",
        )
    return names


def _root(content: Mapping[str, Any], path: Path) -> Path:
    """The folder that paths start from. ``path`` may be in Ultralytics' own data folder, unknown here."""
    given = content.get("path")
    candidates = [path.parent]
    if given:
        candidates = [path.parent / str(given), Path(str(given)), path.parent]
    return next((one for one in candidates if one.is_dir() and _has_split(content, one)), candidates[0])


def _has_split(content: Mapping[str, Any], root: Path) -> bool:
    for keys in SPLITS.values():
        for entry in _entries(content, keys):
            if _found(entry, root) is not None:
                return True
    return False


def _entries(content: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    given: Any = next((content[key] for key in keys if content.get(key)), [])
    return [str(entry) for entry in (given if isinstance(given, (list, tuple)) else [given])]


def _found(entry: str, root: Path) -> Path | None:
    """Resolve a path of the YAML file: Roboflow writes ``../train/images`` for ``train/images``."""
    candidates = [root / entry, root / entry.removeprefix("../"), Path(entry)]
    return next((Path(os.path.normpath(one)) for one in candidates if one.exists()), None)


def _images(content: Mapping[str, Any], keys: Sequence[str], root: Path, path: Path) -> list[Path]:
    found: dict[Path, None] = {}
    for entry in _entries(content, keys):
        place = _found(entry, root)
        if place is None:
            raise UserError(
                f"Images of {keys[0]} not found.",
                expected=f"a folder or .txt file {root / entry}",
                found="no such path",
                remedy=f"correct {keys[0]} or path in {path}",
            )
        names = _of_list(place, root) if place.suffix == ".txt" else listed_images(str(place), what=keys[0])
        found.update(dict.fromkeys(map(Path, names)))
    return list(found)


def _of_list(file: Path, root: Path) -> Iterator[Path]:
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        if line.strip():
            name = Path(line.strip())
            places = [file.parent / name, root / name, name]
            yield Path(os.path.normpath(next((one for one in places if one.exists()), places[0])))


def _common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that contains all images of a split."""
    return Path(os.path.commonpath([file.parent for file in files]))


@dataclass(frozen=True)
class _Reader:
    """Reads label files; with ``keypoints``, rows continue with points after the box."""

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


def _note_orphans(images: Sequence[Path], root: Path, problems: Problems) -> None:
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


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m mmkd.data.yolo DATA_YAML [--out FOLDER]``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mmkd.data.yolo", description="Convert YOLO labels to COCO."
    )
    parser.add_argument("data", help="data.yaml, or its folder")
    parser.add_argument(
        "--out", type=Path, help="output folder for the COCO files (default: annotations, beside the data)"
    )
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="skip duplicate rows, as Ultralytics does"
    )
    args = parser.parse_args(argv)
    try:
        print("\n".join(convert_yolo(args.data, args.out, args.drop_duplicates).lines()))
    except UserError as error:
        print(f"mmkd: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
