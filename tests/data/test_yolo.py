from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmkd.data.yolo import convert_yolo, find_yaml, label_file, main
from mmkd.errors import UserError

NAMES = "names: [cat, dog]\n"


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (100, 80)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade * 7 % 256, 30)).save(path)
    return path


def labelled(image: Path, rows: str, shade: int = 0, size: tuple[int, int] = (100, 80)) -> Path:
    picture(image, shade, size)
    label = label_file(image)
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(rows)
    return image


def yolo(root: Path, text: str = f"train: images/train\nval: images/val\n{NAMES}") -> Path:
    """Two images of training, one of validation."""
    labelled(root / "images/train/b.png", "1 0.5 0.5 0.2 0.25\n", 1)
    labelled(root / "images/train/a.png", "0 0.1 0.5 0.4 0.5\n1 0.3 0.3 0.1 0.1\n", 2)
    labelled(root / "images/val/c.png", "0 0.5 0.5 1 1\n", 3)
    (root / "data.yaml").write_text(text)
    return root / "data.yaml"


def coco(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_ids_names_and_boxes(tmp_path: Path) -> None:
    found = convert_yolo(yolo(tmp_path))
    content = coco(tmp_path / "annotations/train.json")
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(one["id"], one["file_name"]) for one in content["images"]] == [(1, "a.png"), (2, "b.png")]
    assert [(one["width"], one["height"]) for one in content["images"]] == [(100, 80)] * 2
    # The first is clipped at the left.
    assert [one["bbox"] for one in content["annotations"]] == [
        [0.0, 20.0, 30.0, 40.0],
        [25.0, 20.0, 10.0, 8.0],
        [40.0, 30.0, 20.0, 20.0],
    ]
    assert [one["category_id"] for one in content["annotations"]] == [1, 2, 2]
    assert [one["image_id"] for one in content["annotations"]] == [1, 1, 2]
    assert content["annotations"][0]["area"] == 1200
    assert found.classes == ("cat", "dog")
    assert found.splits["val"].images == tmp_path / "images/val"
    assert (found.splits["train"].image_count, found.splits["train"].box_count) == (2, 3)
    assert not found.problems.places
    assert "train: 2 images, 3 boxes" in "\n".join(found.lines())


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


def test_one_split_of_several_folders_has_names_from_their_common_one(tmp_path: Path) -> None:
    path = yolo(tmp_path, f"train: [images/train, images/val]\n{NAMES}")
    found = convert_yolo(path)
    names = [one["file_name"] for one in coco(found.splits["train"].annotations)["images"]]
    assert found.splits["train"].images == tmp_path / "images"
    assert names == ["train/a.png", "train/b.png", "val/c.png"]


def test_an_outline_gives_a_box_and_a_segmentation(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    label_file(tmp_path / "images/val/c.png").write_text("1 0.1 0.25 0.5 0.25 0.5 0.75 0.1 1.005\n")
    convert_yolo(path)
    (one,) = coco(tmp_path / "annotations/val.json")["annotations"]
    assert one["bbox"] == [10, 20, 40, 60]
    assert one["segmentation"] == [[10, 20, 50, 20, 50, 60, 10, 80]]
    assert one["area"] == 2000  # of the trapezium


def test_points_after_a_box_are_not_its_outline(tmp_path: Path) -> None:
    path = yolo(tmp_path, f"train: images/train\nval: images/val\nkpt_shape: [1, 2]\n{NAMES}")
    label_file(tmp_path / "images/val/c.png").write_text("1 0.5 0.5 0.2 0.25 0.9 0.9\n")
    convert_yolo(path)
    (one,) = coco(tmp_path / "annotations/val.json")["annotations"]
    assert one["bbox"] == [40, 30, 20, 20]
    assert "segmentation" not in one


def test_background_is_kept_and_what_is_wrong_is_listed(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    train = tmp_path / "images/train"
    picture(train / "none.png", 10)
    labelled(train / "empty.png", "", 11)
    labelled(train / "range.png", "0 .5 .5 .2 .2\n0 1.2 .5 .2 .2\n", 12)
    labelled(train / "class.png", "2 .5 .5 .2 .2\n", 13)
    labelled(train / "words.png", "cat .5 .5 .2 .2\n", 14)
    labelled(train / "six.png", "0 .5 .5 .2 .2 .9\n", 15)
    labelled(train / "nan.png", "0 .5 nan .2 .2\n", 16)
    labelled(train / "twice.png", "0 .5 .5 .2 .2\n0 .5 .5 .2 .2\n", 17)
    labelled(train / "flat.png", "0 .5 .5 .2 0\n", 18)
    (tmp_path / "labels/train/orphan.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "labels/train/classes.txt").write_text("cat\ndog\n")
    torn = labelled(train / "torn.jpg", "0 .5 .5 .2 .2\n", 19, (400, 400))
    torn.write_bytes(torn.read_bytes()[:1000])
    (train / "text.png").write_text("no image")
    (tmp_path / "images/val/copy.png").write_bytes((train / "b.png").read_bytes())
    found = convert_yolo(path)
    assert found.problems.counts() == {
        "corrupt image, skipped": 2,
        "same image in train and val, kept; scores get too good": 1,
        "image without label file, background": 2,
        "label out of range 0 to 1, image skipped": 2,
        "class beyond the 2 of data.yaml, image skipped": 1,
        "row that is neither `class x y w h` nor `class x1 y1 x2 y2 …`, image skipped": 2,
        "duplicate row, kept": 1,
        "box without area, skipped": 1,
        "label without image": 1,
    }
    names = [one["file_name"] for one in coco(found.splits["train"].annotations)["images"]]
    assert names == ["a.png", "b.png", "empty.png", "flat.png", "none.png", "twice.png"]
    assert found.splits["train"].box_count == 3 + 2
    assert found.problems.places["same image in train and val, kept; scores get too good"] == [
        "images/val/copy.png = images/train/b.png"
    ]
    assert found.problems.places["label without image"] == ["labels/train/orphan.txt"]
    written = (tmp_path / "annotations/problems.txt").read_text()
    assert "labels/train/range.txt:2" in written
    assert "2 × corrupt image, skipped: images/train/text.png (" in "\n".join(found.lines())
    assert convert_yolo(path, drop_duplicates=True).splits["train"].box_count == 3 + 1


def test_an_image_that_exif_turns_has_its_size_after_the_turn(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    image = tmp_path / "images/val/c.jpg"
    (tmp_path / "images/val/c.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(image, exif=exif)
    convert_yolo(path)
    (one,) = coco(tmp_path / "annotations/val.json")["images"]
    assert (one["width"], one["height"]) == (80, 100)


def test_again_gives_the_same_and_problems_that_are_mended_go(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    label = label_file(tmp_path / "images/train/b.png")
    before = label.read_text()
    label.write_text("7 .5 .5 .1 .1")
    assert convert_yolo(path).splits["train"].image_count == 1
    label.write_text(before)
    found = convert_yolo(path)
    first = found.splits["train"].annotations.read_bytes()
    assert not (tmp_path / "annotations/problems.txt").exists()
    convert_yolo(path)
    assert found.splits["train"].annotations.read_bytes() == first


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="would overwrite"):
        convert_yolo(path)
    assert (tmp_path / "annotations/train.json").read_text() == '{"images": []}'
    assert convert_yolo(path, tmp_path / "mine").splits["val"].annotations == tmp_path / "mine/val.json"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: images/train\n", "has no class names"),
        (f"train: images/train\nnc: 3\n{NAMES}", "nc and names do not match"),
        ("train: images/train\nnames: [cat, cat]", "duplicate class names"),
        ("train: images/train\nnames: {0: cat, 2: dog}", "names has gaps"),
        (f"train: images/nowhere\n{NAMES}", "Images of train not found"),
        (NAMES, "lists no images"),
        ("[1, 2]", "no keys like train"),
        ("a: [", "Cannot read"),
    ],
)
def test_what_is_wrong_with_the_yaml_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert_yolo(yolo(tmp_path, text))
    assert not (tmp_path / "annotations").exists()


def test_nothing_labelled_is_an_error(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"labels/train/.\.txt"):
        convert_yolo(path)


def test_the_yaml_file_of_a_folder_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No data set YAML found"):
        find_yaml(tmp_path)
    (tmp_path / "cells.yaml").write_text(NAMES)
    (tmp_path / "other.yaml").write_text("a: 1")
    assert find_yaml(tmp_path) == tmp_path / "cells.yaml"
    (tmp_path / "data.yaml").write_text(NAMES)
    assert find_yaml(tmp_path) == tmp_path / "data.yaml"


def test_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(yolo(tmp_path)), "--out", str(tmp_path / "mine")]) == 0
    assert f"val: 1 images, 1 boxes → {tmp_path}/mine/val.json" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such path" in capsys.readouterr().err
