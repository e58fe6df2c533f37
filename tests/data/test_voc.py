from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmkd.data.voc import convert_voc, find_voc
from mmkd.errors import UserError

CAT = ("cat", 10, 20, 30, 50, 0)


def image(path: Path, *objects: tuple[Any, ...], annotation: Path | None = None) -> None:
    """A picture and its XML, beside it or in another folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = sum(path.name.encode()) % 256
    Image.new("RGB", (100, 80), (shade, 0, 0)).save(path)
    texts = [
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, hard in objects
    ]
    size = "<size><width>100</width><height>80</height></size>"
    annotation = annotation or path.with_suffix(".xml")
    annotation.parent.mkdir(parents=True, exist_ok=True)
    annotation.write_text(f"<annotation>{size}{''.join(texts)}</annotation>")


def voc(root: Path) -> Path:
    """Two images of training, one of validation, as VOC lays them out."""
    for name, *objects in (
        ("b", CAT, ("dog", 0, 0, 100, 80, 1)),
        ("a", ("dog", 5.5, 5, 10, 9, 0)),
        ("c", CAT),
    ):
        image(root / f"JPEGImages/{name}.jpg", *objects, annotation=root / f"Annotations/{name}.xml")
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n")
    (lists / "val.txt").write_text("c\n")
    (lists / "cat_train.txt").write_text("a -1\nb 1\n")
    return root


def coco(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_splits_classes_and_boxes(tmp_path: Path) -> None:
    found = convert_voc(voc(tmp_path))
    content = coco(tmp_path / "annotations/train.json")
    assert found.classes == ("cat", "dog")
    assert [one["file_name"] for one in content["images"]] == ["a.jpg", "b.jpg"]
    assert [(one["category_id"], one["bbox"], one["iscrowd"]) for one in content["annotations"]] == [
        (2, [5.5, 5, 4.5, 4], 0),
        (1, [10, 20, 20, 30], 0),
        (2, [0, 0, 100, 80], 1),
    ]
    assert {name: (one.image_count, one.box_count) for name, one in found.splits.items()} == {
        "train": (2, 3),
        "val": (1, 1),
    }
    assert found.splits["val"].images == tmp_path / "JPEGImages"
    assert not found.problems.places


def test_below_vocdevkit(tmp_path: Path) -> None:
    voc(tmp_path / "VOCdevkit/VOC2007")
    assert find_voc(tmp_path) == tmp_path / "VOCdevkit/VOC2007"
    voc(tmp_path / "VOCdevkit/VOC2012")
    with pytest.raises(UserError, match=r"VOC2007.*VOC2012"):
        find_voc(tmp_path)


def test_a_folder_for_each_split(tmp_path: Path) -> None:
    image(tmp_path / "train/a.jpg", CAT)
    image(tmp_path / "valid/b.jpg", CAT)
    assert list(convert_voc(tmp_path).splits) == ["train", "val"]


def test_without_a_split_all_is_for_training(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", CAT)
    image(tmp_path / "b.png", CAT)
    assert {name: one.image_count for name, one in convert_voc(tmp_path).splits.items()} == {"train": 2}


def test_what_is_wrong_is_listed(tmp_path: Path) -> None:
    root = voc(tmp_path)
    image(root / "JPEGImages/d.jpg", ("cat", 90, 10, 120, 20, 0), ("cat", 200, 0, 300, 9, 0))
    (root / "JPEGImages/d.xml").rename(root / "Annotations/d.xml")
    image(root / "JPEGImages/e.jpg", annotation=root / "Annotations/e.xml")
    (root / "Annotations/e.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    image(root / "JPEGImages/f.jpg", annotation=root / "Annotations/f.xml")
    (root / "Annotations/f.xml").unlink()
    (root / "JPEGImages/g.jpg").write_text("no image")
    (root / "Annotations/a.xml").write_text("<annotation><size><width>9</width><height>80</height></size>")
    (root / "Annotations/b.xml").write_text(
        "<annotation><size><width>9</width><height>80</height></size></annotation>"
    )
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nd\ne\nf\ng\nnowhere\n")
    found = convert_voc(root)
    assert found.problems.counts() == {
        "annotation without image": 1,
        "corrupt image, skipped": 1,
        "unreadable annotation, image skipped": 2,
        "size differs from the image": 1,
        "box extends beyond its image, clipped": 1,
        "box without area in its image, skipped": 1,
        "image without annotation file, background": 1,
    }
    names = [one["file_name"] for one in coco(root / "annotations/train.json")["images"]]
    assert names == ["b.jpg", "d.jpg", "f.jpg"]
    assert coco(root / "annotations/train.json")["annotations"][0]["bbox"] == [90, 10, 10, 10]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot find VOC annotations"):
        convert_voc(tmp_path)
    image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="No image has annotations"):
        convert_voc(tmp_path)
