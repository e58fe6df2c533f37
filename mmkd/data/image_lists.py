"""Lists of image files: a folder, a text file, a COCO file, or the files themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")

ImageList = str | Sequence[str]


def listed_images(
    listed: ImageList, root: str | Path = "", folder: str | Path = "", what: str = "images"
) -> dict[str, dict[str, Any]]:
    """List the image files, each once, in the order of the list; files of a folder by name.

    Args:
        listed: a folder, read recursively; a ``.txt`` file with one name per line; a ``.json`` file in COCO
            format, whose annotations are ignored; an image file; or several of these.
        root: the folder that relative paths in ``listed`` start from.
        folder: the folder that names in text and COCO files start from; they may be absolute.
        what: the list's name for messages.

    Returns:
        By path, what the list says about an image: ``id``, ``width`` and ``height`` from a COCO file.

    Raises:
        UserError: something is missing, unreadable, or contains no image.

    Example:
        >>> list(listed_images("images", root="data/cards"))[0]
        'data/cards/images/train/IMG_2384.jpg'
    """
    parts = [listed] if isinstance(listed, (str, Path)) else listed
    if (
        not isinstance(parts, (list, tuple))
        or not parts
        or not all(isinstance(x, (str, Path)) for x in parts)
    ):
        raise UserError(
            f"`{what}` lists no images.",
            expected="a folder, a .txt or .json file, image files, or a list of these",
            found=repr(listed),
            remedy=f"for example {what}='my_images/'",
        )
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        before = len(found)
        for name, about in _of_one(Path(root, part), Path(folder), what):
            found.setdefault(os.path.normpath(name), about)
        if len(found) == before and len(parts) == 1:
            raise UserError(
                f"`{what}` contains no images.",
                expected=f"files ending in {', '.join(IMAGES)}",
                found=f"none in {Path(root, part)}",
                remedy="correct the path; convert other formats first",
            )
    return found


def _of_one(path: Path, folder: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        if path.is_dir():
            for name in sorted(_below(path)):
                yield name, {}
        elif path.suffix.lower() in IMAGES:
            yield str(path), {}
        elif path.suffix == ".json":
            yield from _of_coco(path, folder)
        elif path.suffix == ".txt":
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    yield str(folder / line.strip()), {}
        else:
            raise ValueError("no folder, image, .txt or .json file")
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read `{what}`.",
            expected="a folder, a .txt file of names, a COCO file, or an image",
            found=f"{path}: {getattr(error, 'strerror', None) or error}",
            remedy="correct the path, or data_root, or download it again",
        ) from error


def _of_coco(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(
        isinstance(image, Mapping) and "file_name" in image for image in images
    ):
        raise ValueError("no list of images with file_name")
    for image in images:
        yield str(folder / image["file_name"]), {k: image[k] for k in ("id", "width", "height") if k in image}


def _below(folder: Path) -> Iterator[str]:
    """Image files below a folder, following links; an unreadable folder is an error."""

    def stop(error: OSError) -> None:
        raise error

    seen = set()
    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(place)
        if real in seen:  # links may form a circle
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            if name.lower().endswith(IMAGES) and not name.startswith("."):
                yield os.path.join(place, name)
