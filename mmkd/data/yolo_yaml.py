"""Reads ``data.yaml`` of a data set with YOLO labels: class names, and the images of each split."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.data.image_lists import listed_images
from mmkd.errors import UserError
from mmkd.yaml_files import read_mapping

FORMAT = "a YAML file in Ultralytics format"
SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


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


def _has_names(file: Path) -> bool:
    try:
        return "names" in read_mapping(file, "data set", FORMAT)
    except UserError:
        return False


def class_names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The class names in the order of the labels.

    Args:
        content: the file's content.
        path: the file, for messages.

    Raises:
        UserError: there are none, or they contradict ``nc`` or each other.
    """
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


def root_of(content: Mapping[str, Any], path: Path) -> Path:
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


def images_of(content: Mapping[str, Any], keys: Sequence[str], root: Path, path: Path) -> list[Path]:
    """The images of a split; empty if the file does not name it.

    Args:
        content: the file's content.
        keys: the split's names, one of `SPLITS`.
        root: the folder that paths start from.
        path: the file, for messages.

    Raises:
        UserError: a path does not exist.
    """
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
