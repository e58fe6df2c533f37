"""Check image files: present, readable, sized as annotated, and not in two splits at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv

from mmkd.doctor.findings import Finding, shortened

# The number of files to look for, evenly spaced, and how many of the first to open.
_LOOKED_FOR = 2000
_OPENED = 20
# The number of same-named file pairs whose content to compare.
_COMPARED = 50

Images = Sequence[tuple[Path, Mapping[str, Any]]]


def examine_files(which: str, folder: Path, images: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Check that the images exist.

    Args:
        which: ``train`` or ``val``, for messages.
        folder: the images' folder.
        images: the images, as listed in COCO.
    """
    what = f"{which}: image files"
    names = [str(image.get("file_name")) for image in images[:: max(1, len(images) // _LOOKED_FOR)]]
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if missing:
        yield Finding.error(
            what,
            f"{len(missing)} of {len(names)} not found in {folder}: {shortened(missing, 3)}",
            f"copy them there, or correct {which}_dataloader.dataset.data_prefix",
        )
    else:
        yield Finding.ok(what, f"{len(names)} checked, all found")


def examine_images(
    which: str, folder: Path, images: Sequence[Mapping[str, Any]], most: int
) -> Iterator[Finding]:
    """Open the first images and compare their sizes.

    Args:
        which: ``train`` or ``val``, for messages.
        folder: the images' folder.
        images: the images, as listed in COCO.
        most: the maximum number to open.
    """
    what = f"{which}: image files"
    unreadable: list[str] = []
    other: list[str] = []
    turned = opened = 0
    for image in images[: min(most, _OPENED)]:
        path = folder / str(image.get("file_name"))
        if not path.is_file():
            continue
        opened += 1
        try:
            pixels = mmcv.imread(str(path))
        except Exception:
            pixels = None
        if pixels is None:
            unreadable.append(path.name)
            continue
        size, given = (pixels.shape[1], pixels.shape[0]), (image.get("width"), image.get("height"))
        if size != given:
            other.append(f"{path.name} is {size[0]}×{size[1]}, the file says {given[0]}×{given[1]}")
            turned += size == given[::-1]
    if unreadable:
        yield Finding.error(what, f"unreadable: {shortened(unreadable, 3)}", "copy them again")
    if other:
        yield Finding.error(
            what,
            f"{len(other)} of {opened} differ in size from the file: {shortened(other, 2)}",
            "width and height are swapped by the EXIF orientation; save the images without EXIF"
            if turned == len(other)
            else "the boxes probably belong to other images: use the images that were annotated",
        )
    if opened and not (unreadable or other):
        yield Finding.ok(what, f"first {opened} opened, sizes match the file")


def examine_overlap(train: Images, val: Images) -> Iterator[Finding]:
    """Check that no validation image is used for training.

    Two entries are the same image if they are the same file, or have the same name and content.
    """
    seen = {os.path.realpath(_path(*image)) for image in train}
    same = [image["file_name"] for folder, image in val if os.path.realpath(_path(folder, image)) in seen]
    names = {Path(str(image["file_name"])).name: _path(folder, image) for folder, image in train}
    pairs = [
        (names[Path(str(image["file_name"])).name], _path(folder, image))
        for folder, image in val
        if Path(str(image["file_name"])).name in names and image["file_name"] not in same
    ]
    copies = [mine.name for mine, theirs in pairs[:_COMPARED] if digest(mine) == digest(theirs) is not None]
    what = "train and val"
    if same or copies:
        yield Finding.warning(
            what,
            f"{len(same) + len(copies)} validation images are in the training set: "
            f"{shortened([*same, *copies], 3)}" + (" (all of them)" if len(same) == len(val) else ""),
            "split again: results on training images are meaningless",
        )
    else:
        tail = f"; {len(pairs)} file names are in both, with different content" if pairs else ""
        yield Finding.ok(what, f"no common images{tail}")


def _path(folder: Path, image: Mapping[str, Any]) -> Path:
    return folder / str(image["file_name"])


def digest(path: str | Path) -> bytes | None:
    """Of a file's content; ``None`` if it cannot be read."""
    try:
        return hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).digest()
    except OSError:
        return None
