"""Converts Pascal VOC annotations, also from labelImg and Roboflow, to COCO JSON: `convert_voc`.

For the reasons given in `mmkd.data.yolo`, and because VOC's own metric is not COCO mAP.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from mmkd.data.image_lists import IMAGES
from mmkd.errors import UserError

MADE_BY = "mmkd.data.voc"
FOLDERS = {"train": ("train", "trainval"), "val": ("val", "valid", "validation"), "test": ("test",)}
# An object in a file: class name, corners, whether it is difficult.
_Object = tuple[str, tuple[float, float, float, float], bool]


def convert_voc(data: str | Path, out: str | Path | None = None) -> Converted:
    """Write a COCO file for each split of a data set with one XML file per image.

    Classes are all class names in the files, sorted. Coordinates are used as they are, as in mmdet's
    `XMLDataset`. ``difficult`` objects become ``iscrowd``, which are ignored in training and evaluation.
    Images whose file or XML is unreadable are left out; images without XML are background.

    Args:
        data: a folder with ``Annotations`` and ``JPEGImages`` (or ``images``) in it or below it, and with
            ``ImageSets/Main/train.txt``, ``val.txt``, ``test.txt`` if it is split; or with ``train``,
            ``valid`` and ``test``, each with images and XML side by side; or with images and XML side by
            side.
        out: folder for the COCO files; by default ``annotations`` in the data set's root.

    Returns:
        Root, classes, splits and problems.

    Raises:
        UserError: there are no annotations, or a file from another source would be overwritten.

    Example:
        >>> convert_voc("VOCdevkit/VOC2007").classes[:3]  # doctest: +SKIP
        ('aeroplane', 'bicycle', 'bird')
    """
    root = find_voc(data)
    folder = root / "annotations" if out is None else Path(out)
    problems = Problems()
    pairs = _splits(root, problems)
    opened = {name: open_images(sorted(files), root, problems) for name, files in pairs.items()}
    note_shared(opened, root, problems)
    read: dict[str, list[tuple[ImageFile, list[_Object]]]] = {}
    for name, images in opened.items():
        read[name] = []
        for image in images:
            objects = _objects(pairs[name][image.path], image, root, problems)
            if objects is not None:
                read[name].append((image, objects))
    classes = tuple(sorted({one[0] for images in read.values() for _, objects in images for one in objects}))
    if not classes:
        raise UserError(
            "No image has annotations.",
            expected="an XML file with objects for each image",
            found=f"none for {sum(map(len, pairs.values()))} images in {root}",
            remedy="correct the path, or put the XML files into Annotations, named like the images",
        )
    labels = {name: label for label, name in enumerate(classes)}
    splits = {}
    for name, found in read.items():
        images_folder = next(iter(pairs[name])).parent
        boxed = [
            (image, [Box(labels[kind], corners, ignored=hard) for kind, corners, hard in objects])
            for image, objects in found
        ]
        count = write_coco(folder / f"{name}.json", images_folder, boxed, classes, MADE_BY)
        splits[name] = Split(name, folder / f"{name}.json", images_folder, len(boxed), count)
    problems.write(folder / PROBLEMS)
    return Converted(root, classes, splits, problems)


def find_voc(data: str | Path) -> Path:
    """The folder of a VOC data set: the given one, or the only one with ``Annotations`` below it.

    Raises:
        UserError: there is none, or several.
    """
    root = Path(data)
    if _has_xml(root / "Annotations") or _has_xml(root) or any(_split_folders(root)):
        return root
    found = [path.parent for path in sorted([*root.glob("*/Annotations"), *root.glob("*/*/Annotations")])]
    if len(found) != 1:
        raise UserError(
            f"Cannot find VOC annotations in {root}.",
            expected="a folder with Annotations/*.xml, or XML files beside the images",
            found=", ".join(map(str, found)) or "none",
            remedy="name one of them" if found else "correct the path",
        )
    return found[0]


def _has_xml(folder: Path) -> bool:
    return next(folder.glob("*.xml"), None) is not None


def _split_folders(root: Path) -> Iterator[tuple[str, Path]]:
    for split, names in FOLDERS.items():
        for name in names:
            if _has_xml(root / name):
                yield split, root / name
                break


def _splits(root: Path, problems: Problems) -> dict[str, dict[Path, Path]]:
    """The XML file of each image, per split; it may not exist."""
    if not _has_xml(root / "Annotations"):
        folders = dict(_split_folders(root)) or {"train": root}
        return {split: _paired(folder, folder, None, root, problems) for split, folder in folders.items()}
    folder = next((root / name for name in ("JPEGImages", "images") if (root / name).is_dir()), root)
    lists = {
        split: next((file for name in names if (file := root / f"ImageSets/Main/{name}.txt").is_file()), None)
        for split, names in FOLDERS.items()
    }
    named = {split: file for split, file in lists.items() if file is not None}
    if not named:
        return {"train": _paired(folder, root / "Annotations", None, root, problems)}
    return {
        split: _paired(folder, root / "Annotations", file, root, problems) for split, file in named.items()
    }


def _paired(
    images: Path, annotations: Path, listed: Path | None, root: Path, problems: Problems
) -> dict[Path, Path]:
    files = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in IMAGES}
    if listed is None:
        stems = list(files)
        missing = [path.stem for path in sorted(annotations.glob("*.xml")) if path.stem not in files]
    else:
        lines = [line.split() for line in listed.read_text(encoding="utf-8-sig").splitlines()]
        wanted = [words[0] for words in lines if words]
        stems = [stem for stem in wanted if stem in files]
        missing = [stem for stem in wanted if stem not in files]
    for stem in missing:
        problems.add("annotation without image", relative(annotations / f"{stem}.xml", root))
    if not stems:
        raise UserError(
            "A split of the VOC data set has no images.",
            expected=f"images in {images}",
            found="none" if listed is None else f"none of those listed in {listed}",
            remedy="correct the folder or the list",
        )
    return {files[stem]: annotations / f"{stem}.xml" for stem in stems}


def _objects(file: Path, image: ImageFile, root: Path, problems: Problems) -> list[_Object] | None:
    name = relative(file, root)
    if not file.is_file():
        problems.add("image without annotation file, background", relative(image.path, root))
        return []
    try:
        tree = ElementTree.parse(file).getroot()
        objects = [_object(one) for one in tree.iter("object")]
    except (ElementTree.ParseError, OSError, ValueError) as error:
        problems.add("unreadable annotation, image skipped", f"{name} ({error})")
        return None
    size = [tree.findtext(f"size/{side}") for side in ("width", "height")]
    if size not in ([None, None], ["0", "0"], [str(image.width), str(image.height)]):
        problems.add("size differs from the image", f"{name} ({size[0]}×{size[1]})")
    kept = []
    for one in objects:
        x1, y1, x2, y2 = one[1]
        if not has_area(Box(0, one[1]), image.width, image.height):
            problems.add("box without area in its image, skipped", name)
            continue
        if min(x1, y1) < -1 or x2 > image.width + 1 or y2 > image.height + 1:
            problems.add("box extends beyond its image, clipped", name)
        kept.append(one)
    return kept


def _object(one: ElementTree.Element) -> _Object:
    name = (one.findtext("name") or "").strip()
    texts: Sequence[str | None] = [one.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    if not name or None in texts:
        raise ValueError("an object without name or bndbox")
    x1, y1, x2, y2 = (float(text or "") for text in texts)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError("a box that is not finite")
    return name, (x1, y1, x2, y2), (one.findtext("difficult") or "0").strip() == "1"
