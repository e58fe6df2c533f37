"""Splits a COCO file in two by image name, so that the split is the same everywhere."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def split_by_hash(content: Mapping[str, Any], every: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take every n-th image, ordered by the SHA-256 of the file names.

    So neither the file's order nor patterns in the names affect the split.

    Args:
        content: a COCO file's content; ids do not change.
        every: 4 takes a quarter.

    Returns:
        The rest, and the images taken.

    Example:
        >>> images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(8)]
        >>> rest, taken = split_by_hash({"images": images, "annotations": []}, every=4)
        >>> [image["id"] for image in taken["images"]]
        [1, 2]
    """
    by_hash = sorted(
        content["images"], key=lambda image: hashlib.sha256(image["file_name"].encode()).digest()
    )
    apart = {image["id"] for image in by_hash[::every]}
    rest, taken = (
        {
            **content,
            "images": [image for image in content["images"] if (image["id"] in apart) == inside],
            "annotations": [one for one in content["annotations"] if (one["image_id"] in apart) == inside],
        }
        for inside in (False, True)
    )
    return rest, taken


def main(argv: Sequence[str] | None = None) -> int:
    """``python data/split.py FILE --every 4 --into REST EVERY_NTH``; returns the exit code."""
    parser = argparse.ArgumentParser(description="Split a COCO file in two by image name.")
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--into", nargs=2, required=True, metavar=("REST", "EVERY_NTH"))
    args = parser.parse_args(argv)
    parts = split_by_hash(json.loads(args.annotations.read_text(encoding="utf-8")), args.every)
    for name, part in zip(args.into, parts, strict=True):
        text = json.dumps(part, separators=(",", ":")) + "\n"
        args.annotations.with_name(name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(part['images'])} images, {len(part['annotations'])} boxes")
    return 0
