from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmkd.errors import UserError
from mmkd.project.dataset import read_dataset

from ..conftest import ROOT
from ..data.test_voc import voc
from ..data.test_yolo import yolo


def few(root: Path, count: int = 10, *splits: str) -> Path:
    """Some images of BCCD with their boxes, in COCO's form."""
    for split in splits or ("train", "val"):
        content = json.loads((ROOT / f"data/bccd/annotations/{split}.json").read_text())
        content["images"] = content["images"][:count]
        ids = {one["id"] for one in content["images"]}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / f"annotations/{split}.json").write_text(json.dumps(content))
        for one in content["images"]:
            target = root / f"images/{split}/{one['file_name']}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / f"data/bccd/images/{split}/{one['file_name']}", target)
    return root


def change(root: Path, **parts: Any) -> None:
    path = root / "annotations/train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def test_coco(tmp_path: Path) -> None:
    data = read_dataset(few(tmp_path / "data"), Path("p"), tmp_path / "own")
    assert (data.kind, data.classes, data.made_val) == ("coco", ("Platelets", "RBC", "WBC"), False)
    assert data.longest_side == 320
    low, middle, high = data.object_sizes
    assert 0.03 < low < middle < high < 0.7
    assert sum(data.boxes.values()) == data.splits["train"].box_count
    assert data.test is data.splits["val"]
    assert not data.remarks


def test_yolo_and_voc_are_found_and_converted(tmp_path: Path) -> None:
    found = read_dataset(yolo(tmp_path / "yolo").parent, Path("p"), tmp_path / "own")
    assert (found.kind, found.boxes) == ("yolo", {"cat": 1, "dog": 2})
    # What was converted is not taken for COCO the next time.
    assert read_dataset(tmp_path / "yolo", Path("p"), tmp_path / "own").kind == "yolo"
    assert read_dataset(tmp_path / "yolo/data.yaml", Path("p"), tmp_path / "own").root == tmp_path / "yolo"
    found = read_dataset(voc(tmp_path / "voc"), Path("p"), tmp_path / "own")
    assert (found.kind, found.splits["val"].image_count) == ("voc", 1)


def test_a_missing_validation_split_is_cut_from_training(tmp_path: Path) -> None:
    own = tmp_path / "own"
    data = read_dataset(few(tmp_path / "data", 10, "train"), Path("p"), own)
    assert data.made_val
    assert [one.image_count for one in data.splits.values()] == [8, 2]
    assert data.splits["val"].annotations == Path("p/annotations/val.json")
    names = [
        {one["file_name"] for one in json.loads((own / f"annotations/{x}.json").read_text())["images"]}
        for x in ("train", "val")
    ]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 10


def test_what_would_spoil_a_training_is_an_error(tmp_path: Path) -> None:
    root = few(tmp_path / "data", 4)
    whole = json.loads((root / "annotations/train.json").read_text())
    flat = [{key: value for key, value in one.items() if key != "area"} for one in whole["annotations"]]
    change(root, annotations=flat)
    with pytest.raises(UserError, match="have no 'area'"):
        read_dataset(root, Path("p"), tmp_path)
    outside = [{**one, "bbox": [300, 200, 90, 90]} for one in whole["annotations"]]
    change(root, annotations=outside)
    with pytest.raises(UserError, match="extend beyond"):
        read_dataset(root, Path("p"), tmp_path)
    change(root, annotations=whole["annotations"])
    last = whole["images"][-1]["file_name"]
    (root / "images/train" / last).write_text("torn")
    with pytest.raises(UserError, match="unreadable"):
        read_dataset(root, Path("p"), tmp_path)


def test_images_in_both_splits_are_remarked(tmp_path: Path) -> None:
    root = few(tmp_path / "data", 4)
    shutil.copy(root / "annotations/train.json", root / "annotations/val.json")
    shutil.copytree(root / "images/train", root / "images/val", dirs_exist_ok=True)
    (remark,) = read_dataset(root, Path("p"), tmp_path).remarks
    assert "4 validation images are in the training set" in remark


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Data not found"):
        read_dataset(tmp_path / "nowhere", Path("p"), tmp_path)
    (tmp_path / "a.jpg").write_text("")
    with pytest.raises(UserError, match=r"No data set found in .*(?s:.)*a\.jpg"):
        read_dataset(tmp_path, Path("p"), tmp_path)
    with pytest.raises(UserError, match="no annotations of coco"):
        read_dataset(tmp_path, Path("p"), tmp_path, "coco")


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("coco/images", "did you mean --data .*coco"),
        ("yolo/images/train", "did you mean --data .*yolo"),
        ("voc/JPEGImages", "did you mean --data .*voc"),
        ("bare", r"these look like YOLO labels: write .*data\.yaml with names"),
        ("data.zip", "unpack it"),
    ],
)
def test_the_data_set_is_close_by(tmp_path: Path, given: str, remedy: str) -> None:
    few(tmp_path / "coco", 1)
    yolo(tmp_path / "yolo")
    voc(tmp_path / "voc")
    (tmp_path / "bare/labels/train").mkdir(parents=True)
    (tmp_path / "bare/labels/train/a.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=rf"No data set found(.|\n)*remedy: +{remedy}"):
        read_dataset(tmp_path / given, Path("p"), tmp_path)


def test_what_was_wrong_with_the_labels_is_said(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo").parent
    data = read_dataset(root, Path("p"), tmp_path / "own")
    assert not any("all places" in remark for remark in data.remarks)
    (root / "images/train/torn.jpg").write_bytes(b"no image")
    remarks = read_dataset(root, Path("p"), tmp_path / "own").remarks
    assert "1 × corrupt image, skipped: images/train/torn.jpg (not an image, or" in remarks[0]
    assert f"all places: {root / 'annotations/problems.txt'}" in remarks
    for file in (root / "labels/train").iterdir():
        file.write_text("9 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match=r"No boxes in train(.|\n)* × class beyond the 2 of data.yaml"):
        read_dataset(root, Path("p"), tmp_path / "own")
