from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmkd.data.coco_folder import find_coco
from mmkd.errors import UserError

from ..conftest import ROOT

CATEGORIES = [{"id": 7, "name": "none"}, {"id": 3, "name": "cat"}]


def coco(path: Path, images: Path | None = None, **more: object) -> Path:
    """One image and one box of a cat; the image lies in ``images``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 3, 3]}],
        "categories": CATEGORIES,
        **more,
    }
    path.write_text(json.dumps(content))
    if images is not None:
        images.mkdir(parents=True, exist_ok=True)
        (images / "a.jpg").write_text("")
    return path


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (("annotations/train.json", "annotations/val.json"), ("images/train", "images/val")),
        (
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            ("train2017", "val2017"),
        ),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
        (("train.json", "val.json"), ("images", "images")),
    ],
)
def test_the_layouts(tmp_path: Path, files: tuple[str, str], folders: tuple[str, str]) -> None:
    for file, folder in zip(files, folders, strict=True):
        coco(tmp_path / file, tmp_path / folder)
    found = find_coco(tmp_path)
    assert found is not None
    assert found.classes == ("cat",)
    assert {name: (str(one.annotations), str(one.images)) for name, one in found.splits.items()} == {
        name: (str(tmp_path / file), str(tmp_path / folder))
        for name, file, folder in zip(("train", "val"), files, folders, strict=True)
    }


def test_of_several_files_the_plain_one_is_taken() -> None:
    for name in ("bccd", "cards"):
        found = find_coco(ROOT / "data" / name)
        assert found is not None
        files = {split: one.annotations.name for split, one in found.splits.items()}
        assert files == {"train": "train.json", "val": "val.json"}
        assert found.splits["train"].images == ROOT / f"data/{name}/images/train"


def test_a_single_file_is_for_training(tmp_path: Path) -> None:
    coco(tmp_path / "labels.json", tmp_path / "pictures")
    found = find_coco(tmp_path)
    assert found is not None
    assert list(found.splits) == ["train"]


def test_what_is_no_coco_file_and_what_was_converted_is_left(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "torn.json").write_text("{")
    coco(tmp_path / "train.json", tmp_path, info={"made_by": "me"})
    assert find_coco(tmp_path, without=("me",)) is None
    assert find_coco(tmp_path) is not None


def test_images_that_are_nowhere(tmp_path: Path) -> None:
    coco(tmp_path / "train.json")
    with pytest.raises(UserError, match=r"a folder that contains a\.jpg"):
        find_coco(tmp_path)


def test_categories_that_differ(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", tmp_path)
    coco(tmp_path / "val.json", categories=CATEGORIES[::-1])
    with pytest.raises(UserError, match="different categories"):
        find_coco(tmp_path)
