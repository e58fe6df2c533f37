"""Converts YOLO labels, as written and read by Ultralytics, to COCO JSON: `convert_yolo`.

They are converted instead of read by a data set class because evaluation needs a COCO file anyway, and every
MMDetection tool (data sets, metrics, browsers, the doctor, comparisons) reads one. One conversion serves them
all, reports label problems before training, and avoids opening 100,000 text files at each start.

    python -m mmkd.data.yolo my_data/data.yaml
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmkd.data.conversion import (
    PROBLEMS,
    Box,
    Converted,
    ImageFile,
    Problems,
    Split,
    note_shared,
    open_images,
    write_coco,
)
from mmkd.data.yolo_labels import LabelReader, label_file, note_orphans
from mmkd.data.yolo_yaml import FORMAT, SPLITS, class_names, find_yaml, images_of, root_of
from mmkd.errors import UserError
from mmkd.yaml_files import read_mapping

MADE_BY = "mmkd.data.yolo"


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
    content = read_mapping(path, "data set", FORMAT)
    classes = class_names(content, path)
    root = root_of(content, path)
    folder = root / "annotations" if out is None else Path(out)
    problems = Problems()
    files = {name: images_of(content, keys, root, path) for name, keys in SPLITS.items()}
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
    reader = LabelReader(len(classes), "kpt_shape" in content, drop_duplicates, root, problems)
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
        note_orphans(found, root, problems)
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


def _common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that contains all images of a split."""
    return Path(os.path.commonpath([file.parent for file in files]))


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
