"""The rest is tested by what reads: `test_yolo.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.data.conversion import Box, ImageFile, Problems, has_area, write_coco
from mmkd.errors import UserError


def test_a_long_list_of_problems_is_shortened_in_a_line_and_whole_in_the_file(tmp_path: Path) -> None:
    problems = Problems()
    for number in range(5):
        problems.add("torn", tmp_path / f"{number}.jpg")
    problems.add("empty", "a.txt")
    (line, other) = problems.lines()
    assert line.startswith("5 × torn")
    assert line.endswith("2.jpg, … 2 more")
    assert other == "1 × empty: a.txt"
    problems.write(tmp_path / "new/problems.txt")
    assert (tmp_path / "new/problems.txt").read_text().count(".jpg\n") == 5


def test_a_box_without_area_in_the_image_is_left_out(tmp_path: Path) -> None:
    outside, inside = Box(0, (120, 0, 140, 10)), Box(0, (90, 0, 140, 10), ignored=True)
    assert [has_area(box, 100, 80) for box in (outside, inside)] == [False, True]
    image = ImageFile(tmp_path / "a.png", 100, 80, b"")
    assert write_coco(tmp_path / "x.json", tmp_path, [(image, [outside, inside])], ["cat"], "me") == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_coco(tmp_path / "file/x.json", tmp_path, [], ["cat"], "me")
