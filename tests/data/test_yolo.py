from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmkd.data.yolo import convert_yolo, main
from mmkd.data.yolo_labels import label_file
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


def test_one_split_of_several_folders_has_names_from_their_common_one(tmp_path: Path) -> None:
    path = yolo(tmp_path, f"train: [images/train, images/val]\n{NAMES}")
    found = convert_yolo(path)
    names = [one["file_name"] for one in coco(found.splits["train"].annotations)["images"]]
    assert found.splits["train"].images == tmp_path / "images"
    assert names == ["train/a.png", "train/b.png", "val/c.png"]


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


def test_nothing_labelled_is_an_error(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"labels/train/.\.txt"):
        convert_yolo(path)


def test_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(yolo(tmp_path)), "--out", str(tmp_path / "mine")]) == 0
    assert f"val: 1 images, 1 boxes → {tmp_path}/mine/val.json" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such path" in capsys.readouterr().err
