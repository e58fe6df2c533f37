from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmkd import UserError
from mmkd.data import listed_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "deep/notes.md", ".hidden/d.jpg", "deep/.e.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    return tmp_path


def names(found: dict[str, dict[str, int]], folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in found]


def test_a_folder_with_all_below_it(folder: Path) -> None:
    found = listed_images("images", root=folder)
    assert names(found, folder) == ["images/a.png", "images/b.JPG", "images/deep/er/c.webp"]


def test_a_link_round_in_a_circle_ends(folder: Path) -> None:
    (folder / "images/deep/again").symlink_to(folder / "images")
    assert len(listed_images(str(folder / "images"))) == 3


def test_text_coco_and_files_once_each(folder: Path) -> None:
    (folder / "list.txt").write_text("images/b.JPG\n\n  images/a.png \n")
    images = [{"id": 7, "file_name": "images/a.png", "width": 4, "height": 3, "license": 1}]
    (folder / "coco.json").write_text(json.dumps({"images": images}))
    found = listed_images(["list.txt", "coco.json", "images/b.JPG"], root=folder, folder=folder)
    assert names(found, folder) == ["images/b.JPG", "images/a.png"], "the first to name one tells of it"
    told = listed_images("coco.json", root=folder, folder=folder)
    assert list(told.values()) == [{"id": 7, "width": 4, "height": 3}]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "`--data` lists no images"),
        ([3], "`--data` lists no images"),
        ("empty", "`--data` contains no images"),
        ("nowhere.txt", "Cannot read `--data`[\\s\\S]*No such file"),
        ("notes.md", "Cannot read `--data`[\\s\\S]*no folder, image, .txt or .json file"),
        ("broken.json", "Cannot read `--data`"),
        ("other.json", "no list of images with file_name"),
    ],
)
def test_what_is_no_list_of_images(folder: Path, listed: object, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "notes.md").touch()
    (folder / "broken.json").write_text("{")
    (folder / "other.json").write_text('{"images": [{"id": 1}]}')
    with pytest.raises(UserError, match=message):
        listed_images(listed, root=folder, what="--data")  # type: ignore[arg-type]
