from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mmkd.doctor.images import examine_files, examine_images, examine_overlap


def write(folder: Path, name: str, width: int = 8, height: int = 6, value: int = 0) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / name), np.full((height, width, 3), value, np.uint8))
    return {"id": len(name), "file_name": name, "width": 8, "height": 6}


def test_as_they_should_be(tmp_path: Path) -> None:
    (finding,) = examine_images("val", tmp_path, [write(tmp_path, "a.png"), write(tmp_path, "b.png")], 9)
    assert (finding.level, finding.found) == ("ok", "first 2 opened, sizes match the file")


def test_missing(tmp_path: Path) -> None:
    images = [write(tmp_path, "a.png"), {"id": 2, "file_name": "nothere.png", "width": 8, "height": 6}]
    (finding,) = examine_files("val", tmp_path, images)
    assert finding.level == "error"
    assert f"1 of 2 not found in {tmp_path}: nothere.png" in finding.found


def test_unreadable(tmp_path: Path) -> None:
    image = write(tmp_path, "a.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    (finding,) = examine_images("val", tmp_path, [image], 9)
    assert (finding.level, finding.found) == ("error", "unreadable: a.png")


@pytest.mark.parametrize(("size", "remedy"), [((6, 8), "EXIF"), ((16, 12), "that were annotated")])
def test_of_another_size(tmp_path: Path, size: tuple[int, int], remedy: str) -> None:
    (finding,) = examine_images("val", tmp_path, [write(tmp_path, "a.png", *size)], 9)
    assert f"a.png is {size[0]}×{size[1]}, the file says 8×6" in finding.found
    assert remedy in finding.remedy


def test_one_image_in_both(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    same, copied, other = write(a, "1.png"), write(a, "2.png", value=9), write(a, "3.png", value=7)
    val = [(a, same), (b, write(b, "2.png", value=9)), (b, write(b, "3.png", value=8))]
    (finding,) = examine_overlap([(a, same), (a, copied), (a, other)], val)
    assert finding.level == "warning"
    assert "2 validation images are in the training set: 1.png, 2.png" in finding.found


def test_one_name_of_two_images(tmp_path: Path) -> None:
    train = [(tmp_path / "a", write(tmp_path / "a", "1.png", value=1))]
    (finding,) = examine_overlap(train, [(tmp_path / "b", write(tmp_path / "b", "1.png", value=2))])
    assert (finding.level, finding.found) == (
        "ok",
        "no common images; 1 file names are in both, with different content",
    )
