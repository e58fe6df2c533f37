from __future__ import annotations

from pathlib import Path

from mmkd.data.yolo import convert_yolo
from mmkd.data.yolo_labels import label_file

from .test_yolo import NAMES, coco, labelled, picture, yolo


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
