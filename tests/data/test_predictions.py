from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmkd.data.predictions import beyond
from mmkd.errors import UserError

from .test_prediction_files import content, image, read


def test_an_image_without_boxes_is_legal(tmp_path: Path) -> None:
    found = read(tmp_path, content())
    assert len(found.of(0).boxes_M4) == len(found.of(1).boxes_M4) == 0
    assert found.find("a/1.jpg") == 0


def test_names_are_ends_of_paths(tmp_path: Path) -> None:
    images = [image(1, "a/x.jpg"), image(2, "b/x.jpg"), image(3, "x.jpg")]
    found = read(tmp_path, content(images=images))
    assert found.find("/data/a/x.jpg") == 0
    assert found.find("C:\\data\\b\\x.jpg") == 1
    assert found.find("/data/c/x.jpg") == 2
    assert found.find("/data/c/ax.jpg") is None


def test_an_image_that_is_named_twice(tmp_path: Path) -> None:
    found = read(tmp_path, content(images=[image(1, "x.jpg"), image(2, "x.jpg")]))
    with pytest.raises(UserError, match="2 times"):
        found.find("/data/x.jpg")


def test_rounding_may_move_a_box_out_of_its_image() -> None:
    boxes_N4 = np.array([[-2.9, 0, 101, 50], [-3.1, 0, 10, 10], [0, 0, 103.1, 10], [0, 0, 10, 52.6]])
    found_N = beyond(boxes_N4, np.array([[100.0, 50.0]]).repeat(4, 0))
    assert found_N.tolist() == [False, True, True, True], "2 px and 1 % of the side"
    assert not beyond(boxes_N4, np.full((4, 2), np.inf)).any(), "the size is unknown"
