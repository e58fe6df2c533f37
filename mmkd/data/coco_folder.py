"""Find COCO files in a folder, with their splits and image folders: `find_coco`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.data.conversion import Converted, Problems, Split
from mmkd.errors import UserError

_SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Words in a file name that do not help to choose among several files.
_IDLE = ("instances", "annotations", "coco", "json")
_LOOKED_FOR = 5


def find_coco(data: str | Path, without: Sequence[str] = ()) -> Converted | None:
    """Find the COCO files in a folder, in its ``annotations`` or beside the images, and their images.

    If a split has several files, like ``train.json`` and ``tune_train.json``, the one with fewer other words
    in its name is used. Classes are the categories that have boxes, in the file's order, which mmdet also
    uses.

    Args:
        data: the folder.
        without: skip files whose ``info.made_by`` is one of these.

    Returns:
        Root, classes and splits; ``None`` if there is no COCO file.

    Raises:
        UserError: a file's images are missing, or the splits have different categories.

    Example:
        >>> find_coco("data/bccd").classes
        ('Platelets', 'RBC', 'WBC')
    """
    root = Path(data)
    files = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/*.json")]
    splits_of = {path: _split_of(path, root) for path in sorted(set(files), key=lambda x: (_words(x), x))}
    chosen: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for names in (_SPLITS, (None,)):  # a file without a split is used only if no file has one
        for path in [
            path for path, split in splits_of.items() if split in names and not (chosen and split is None)
        ]:
            split = splits_of[path] or "train"
            if split not in chosen and (content := _coco(path, without)) is not None:
                chosen[split] = (path, content)
    if not chosen:
        return None
    _check_categories(chosen)
    used = {one["category_id"] for _, content in chosen.values() for one in content["annotations"]}
    first = next(iter(chosen.values()))[1]
    classes = tuple(str(one["name"]) for one in first["categories"] if one["id"] in used)
    folders = list(_folders(root))
    splits = {
        name: Split(
            name,
            path,
            _images_folder(name, path, content, folders),
            len(content["images"]),
            len(content["annotations"]),
        )
        for name in _SPLITS
        if name in chosen
        for path, content in [chosen[name]]
    }
    return Converted(root, classes, splits, Problems())


def _words(path: Path) -> int:
    return len([word for word in re.findall("[a-z]+", path.stem.lower()) if word not in _IDLE])


def _split_of(path: Path, root: Path) -> str | None:
    """The split, from the words of the file's name or else its folder's."""
    for text in (path.stem, path.parent.relative_to(root).as_posix()):
        words = re.findall("[a-z]+", text.lower())
        for split, names in _SPLITS.items():
            if any(word in names for word in words):
                return split
    return None


def _coco(path: Path, without: Sequence[str]) -> Mapping[str, Any] | None:
    """A file's content if it contains boxes in COCO format."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return None
    lists = [content.get(key) for key in ("images", "annotations", "categories")] if _is_map(content) else []
    if not lists or not all(isinstance(part, list) and part and _is_map(part[0]) for part in lists):
        return None
    if "bbox" not in lists[1][0] or "file_name" not in lists[0][0]:
        return None
    made_by = (content.get("info") or {}).get("made_by") if _is_map(content.get("info")) else None
    return None if made_by in without else content


def _is_map(part: Any) -> bool:
    return isinstance(part, Mapping)


def _check_categories(chosen: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> None:
    first: tuple[Path, list[Any]] | None = None
    for path, content in chosen.values():
        own = [(one.get("id"), one.get("name")) for one in content["categories"]]
        first = first or (path, own)
        if own != first[1]:
            raise UserError(
                "The COCO files of the data set have different categories.",
                expected=f"the categories of {first[0]}: {first[1][:8]}",
                found=f"{path}: {own[:8]}",
                remedy="give all files the same categories, in the same order",
            )


def _folders(root: Path) -> Iterator[Path]:
    """A folder and its subfolders, down to three levels."""
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(Path(place).relative_to(root).parts) == 3:
            folders.clear()
        yield Path(place)


def _images_folder(split: str, path: Path, content: Mapping[str, Any], folders: Sequence[Path]) -> Path:
    names = [str(image["file_name"]) for image in content["images"][:_LOOKED_FOR]]
    fitting = [folder for folder in folders if all((folder / name).is_file() for name in names)]
    if not fitting:
        raise UserError(
            f"Cannot find the images of {path}.",
            expected=f"a folder that contains {names[0]}",
            found=f"not in any of {len(folders)} folders in {folders[0]}",
            remedy="put the images beside the annotations, as images/train, or correct file_name",
        )

    def is_of_split(folder: Path) -> bool:
        words = re.findall("[a-z]+", folder.relative_to(folders[0]).as_posix().lower())
        return any(word in _SPLITS[split] for word in words)

    return min(fitting, key=lambda folder: (not is_of_split(folder), len(folder.parts)))
