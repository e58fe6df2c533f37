from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.data.yolo import convert_yolo
from mmkd.data.yolo_yaml import find_yaml
from mmkd.errors import UserError

from .test_yolo import NAMES, coco, labelled, yolo


@pytest.mark.parametrize(
    "text",
    [
        "train: ./images/train/\nval: ./images/val/\nnc: 2\nnames: ['cat', 'dog']",
        "path: .\ntrain: images/train\nvalidation: images/val\nnames: {0: cat, 1: dog}",
        "path: {root}\ntrain: [images/train]\nval: [images/val]\nnames:\n  0: cat\n  1: dog\n",
        "path: ../datasets/never_there\ntrain: images/train\nval: images/val\nnames: [cat, dog]",
        "train: ../images/train\nval: ../images/val\nnames: [cat, dog]",
        "train: {root}/images/train\nval: {root}/images/val\nnames: [cat, dog]",
        "train: train.txt\nval: lists/val.txt\nnames: [cat, dog]",
        "\ufefftrain: images/train\nval: images/val\nnames: [cat, dog]",
    ],
)
def test_the_ways_in_which_paths_and_names_are_written(tmp_path: Path, text: str) -> None:
    path = yolo(tmp_path, text.replace("{root}", str(tmp_path)))
    (tmp_path / "lists").mkdir()
    (tmp_path / "train.txt").write_text("./images/train/a.png\n./images/train/b.png\n")
    (tmp_path / "lists/val.txt").write_text(f"{tmp_path}/images/val/c.png\n")
    found = convert_yolo(path)
    assert found.classes == ("cat", "dog")
    assert {name: (one.image_count, one.box_count) for name, one in found.splits.items()} == {
        "train": (2, 3),
        "val": (1, 1),
    }
    assert coco(found.splits["train"].annotations)["images"][0]["file_name"] == "a.png"
    assert found.splits["train"].annotations.parent == tmp_path / "annotations"
    assert not found.problems.places


def test_labels_beside_a_folder_of_images_in_each_split(tmp_path: Path) -> None:
    labelled(tmp_path / "train/images/a.jpg", "0 .5 .5 .5 .5", 1)
    labelled(tmp_path / "valid/images/b.jpg", "0 .5 .5 .5 .5", 2)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['x']")
    found = convert_yolo(tmp_path)
    assert (tmp_path / "train/labels/a.txt").is_file()
    assert [one.box_count for one in found.splits.values()] == [1, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: images/train\n", "has no class names"),
        (f"train: images/train\nnc: 3\n{NAMES}", "nc and names do not match"),
        ("train: images/train\nnames: [cat, cat]", "duplicate class names"),
        ("train: images/train\nnames: {0: cat, 2: dog}", "names has gaps"),
        (f"train: images/nowhere\n{NAMES}", "Images of train not found"),
        (NAMES, "lists no images"),
        ("[1, 2]", r"it contains \[1, 2\]"),
        ("a: [", "Cannot read"),
    ],
)
def test_what_is_wrong_with_the_yaml_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert_yolo(yolo(tmp_path, text))
    assert not (tmp_path / "annotations").exists()


def test_the_yaml_file_of_a_folder_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No data set YAML found"):
        find_yaml(tmp_path)
    (tmp_path / "cells.yaml").write_text(NAMES)
    (tmp_path / "other.yaml").write_text("a: 1")
    assert find_yaml(tmp_path) == tmp_path / "cells.yaml"
    (tmp_path / "data.yaml").write_text(NAMES)
    assert find_yaml(tmp_path) == tmp_path / "data.yaml"
