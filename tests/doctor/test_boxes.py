from __future__ import annotations

from typing import Any

import pytest

from mmkd.doctor.boxes import examine_boxes
from mmkd.doctor.findings import Finding


def examined(*boxes: Any, image: int = 1) -> list[Finding]:
    annotations = [{"id": n, "image_id": image, "bbox": box} for n, box in enumerate(boxes)]
    images = [{"id": 1, "width": 100, "height": 50}]
    return list(examine_boxes("train", {"images": images, "annotations": annotations}))


GOOD = [[0, 0, 100, 50]] * 20


def test_within() -> None:
    (finding,) = examined(*GOOD, [0.5, 0.5, 100.2, 49.9])  # rounded
    assert (finding.level, finding.found) == ("ok", "21: finite, non-empty, within their images")


@pytest.mark.parametrize(
    ("box", "level", "text"),
    [
        ([90, 10, 20, 20], "warning", "1 of 21 (ids 20) extend beyond"),
        ([-3, 10, 20, 20], "warning", "extend beyond"),
        ([10, 10, 0, 20], "warning", "have no area"),
        ([10, 10, 20, -20], "warning", "have no area"),
        ([10, 10, float("nan"), 20], "error", "not four finite numbers"),
        ([10, 10, 20], "error", "not four finite numbers"),
        (None, "error", "not four finite numbers"),
        (["1", 1, 1, 1], "error", "not four finite numbers"),
    ],
)
def test_one_that_is_not_right(box: Any, level: str, text: str) -> None:
    (finding,) = examined(*GOOD, box)
    assert finding.level == level
    assert text in finding.found


def test_corners_in_place_of_sizes() -> None:
    (finding,) = examined([60, 20, 90, 45], [70, 10, 100, 50])
    assert finding.level == "error"
    assert "they look like x1, y1, x2, y2" in finding.remedy


def test_many_are_outside() -> None:
    (finding,) = examined(*GOOD[:5], [60, 20, 900, 450])
    assert finding.level == "error"
    assert "in pixels" in finding.remedy


def test_of_no_image() -> None:
    (finding,) = examined([0, 0, 1, 1], image=7)
    assert "have an unknown image_id" in finding.found
