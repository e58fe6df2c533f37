#!/usr/bin/env python3
"""Split the images of a COCO file in two: to choose by one part what the test images shall judge.

    python data/split.py data/bccd/annotations/train.json --every 4 --into tune_train.json tune_val.json

Every n-th image, in the order of their file names' SHA-256, goes into the second file, so that neither the
order in the file nor what names have in common decides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path


def main() -> None:
    """Write two annotation files beside the one that is split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--into", nargs=2, required=True, metavar=("REST", "EVERY_NTH"))
    chosen = parser.parse_args()
    content = json.loads(chosen.annotations.read_text())
    by_hash = sorted(
        content["images"], key=lambda image: hashlib.sha256(image["file_name"].encode()).digest()
    )
    apart = {image["id"] for image in by_hash[:: chosen.every]}
    for name, inside in zip(chosen.into, (False, True), strict=True):
        part = {
            **content,
            "images": [image for image in content["images"] if (image["id"] in apart) == inside],
            "annotations": [a for a in content["annotations"] if (a["image_id"] in apart) == inside],
        }
        chosen.annotations.with_name(name).write_text(json.dumps(part, separators=(",", ":")) + "\n")
        print(f"{name}: {len(part['images'])} images, {len(part['annotations'])} boxes")


if __name__ == "__main__":
    main()
