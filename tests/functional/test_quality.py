from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmkd.functional.quality import gaussian_weights, prediction_quality

from .test_masks import boxes


def plain_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("xi", [0.0, 0.3, 0.8, 1.0])
def test_quality_by_hand(xi: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 3, dtype=torch.float64, generator=generator)
    corner, side = torch.rand(2, 6, 2, dtype=torch.float64, generator=generator) * 20
    predicted = torch.cat([corner, corner + side + 1], 1)
    objects, labels = boxes((2, 3, 15, 16), (10, 0, 30, 12)), torch.tensor([2, 0])
    expected = [
        [
            float(scores[i, labels[g]]) ** (1 - xi)
            * plain_iou(predicted[i].tolist(), objects[g].tolist()) ** xi
            for g in range(2)
        ]
        for i in range(6)
    ]
    value = prediction_quality(scores, predicted, objects, labels, xi)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_quality_of_empty_boxes_and_no_objects() -> None:
    empty = prediction_quality(torch.ones(2, 1), torch.zeros(2, 4), torch.zeros(1, 4), torch.tensor([0]), 0.5)
    assert empty.tolist() == [[0.0], [0.0]]
    none = prediction_quality(
        torch.ones(2, 1), torch.zeros(2, 4), torch.zeros(0, 4), torch.zeros(0).long(), 0.5
    )
    assert none.shape == (2, 0)


@pytest.mark.parametrize("xi", [-0.1, 1.1, float("nan"), "0.8"])
def test_bad_xi(xi: Any) -> None:
    with pytest.raises(ValueError, match=r"xi must be a number in \[0, 1\], found"):
        prediction_quality(torch.ones(2, 1), torch.zeros(2, 4), torch.zeros(1, 4), torch.tensor([0]), xi)


def test_quality_of_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected scores \(3, K\) and labels \(1,\)"):
        prediction_quality(torch.ones(2, 1), torch.zeros(3, 4), torch.zeros(1, 4), torch.tensor([0]), 0.5)
    with pytest.raises(ValueError, match=r"expected boxes \(G, 4\)"):
        prediction_quality(torch.ones(2, 1), torch.zeros(2, 5), torch.zeros(1, 4), torch.tensor([0]), 0.5)


def grid(side: int = 6, stride: int = 8) -> torch.Tensor:
    return torch.tensor(
        [(x * stride, y * stride) for y in range(side) for x in range(side)], dtype=torch.float64
    )


def plain_gaussian(quality: Any, centers: Any, objects: Any, topk: int) -> list[float]:
    """Object by object, with the inverse of a 2×2 matrix written out."""
    weights = [0.0] * len(centers)
    for g, (x1, y1, x2, y2) in enumerate(objects.tolist()):
        best = sorted(range(len(centers)), key=lambda i: -float(quality[i, g]))[:topk]
        points = [centers[i].tolist() for i in best]
        mx, my = (sum(p[axis] for p in points) / len(points) for axis in (0, 1))
        a = sum((p[0] - mx) ** 2 for p in points) / len(points) + 0.01 / 12
        d = sum((p[1] - my) ** 2 for p in points) / len(points) + 0.01 / 12
        b = sum((p[0] - mx) * (p[1] - my) for p in points) / len(points)
        det = a * d - b * b
        for i, (x, y) in zip(best, points):
            dx, dy = x - mx, y - my
            distance = (d * dx * dx - 2 * b * dx * dy + a * dy * dy) / det
            if x1 < x < x2 and y1 < y < y2:
                weights[i] = max(weights[i], math.exp(-distance / 2))
    return weights


@pytest.mark.parametrize("topk", [1, 4, 9])
def test_gaussian_weights_by_hand(topk: int) -> None:
    quality = torch.rand(36, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objects = boxes((4, 4, 30, 38), (-5, -5, 60, 60), (20, 0, 41, 41))
    weights = gaussian_weights(quality, grid(), objects, torch.ones(36).bool(), topk)
    torch.testing.assert_close(
        weights, torch.tensor(plain_gaussian(quality, grid(), objects, topk), dtype=torch.float64)
    )
    assert weights.max() <= 1
    assert 0 < (weights > 0).sum() <= 3 * topk


def test_gaussian_weights_never_choose_what_is_not_valid() -> None:
    quality = torch.rand(36, 1, dtype=torch.float64)
    valid = torch.zeros(36).bool()
    valid[[14, 15]] = True
    weights = gaussian_weights(quality, grid(), boxes((0, 0, 100, 100)), valid, 9)
    assert (weights > 0).nonzero().flatten().tolist() == [14, 15]
    assert gaussian_weights(quality, grid(), boxes((0, 0, 100, 100)), ~valid & False, 9).sum() == 0


def test_gaussian_weights_of_one_point_or_a_line_are_finite() -> None:
    quality = torch.zeros(36, 1, dtype=torch.float64)
    quality[6:11] = 1  # a row: its covariance has no inverse
    weights = gaussian_weights(quality, grid(), boxes((-1, -1, 100, 100)), torch.ones(36).bool(), 5)
    assert torch.isfinite(weights).all()
    assert weights.argmax() == 8
    alone = gaussian_weights(quality, grid(), boxes((-1, -1, 100, 100)), torch.ones(36).bool(), 1)
    assert alone.sum() == 1


def test_gaussian_weights_without_objects_and_of_an_object_between_positions() -> None:
    valid = torch.ones(36).bool()
    assert gaussian_weights(torch.zeros(36, 0), grid().float(), torch.zeros(0, 4), valid, 9).sum() == 0
    tiny = boxes((9, 9, 10, 10))
    assert gaussian_weights(torch.rand(36, 1).double(), grid(), tiny, valid, 9).sum() == 0


def test_gaussian_weights_do_not_change_when_everything_moves() -> None:
    quality = torch.rand(36, 2, dtype=torch.float64)
    objects, valid = boxes((4, 4, 30, 38), (5, 5, 44, 44)), torch.ones(36).bool()
    moved = gaussian_weights(quality, grid() + 500, objects + 500, valid, 9)
    torch.testing.assert_close(moved, gaussian_weights(quality, grid(), objects, valid, 9))


def test_gaussian_weights_of_bad_shapes() -> None:
    with pytest.raises(ValueError, match="expected centers, boxes, valid"):
        gaussian_weights(torch.zeros(36, 2), grid(), boxes((0, 0, 1, 1)), torch.ones(36).bool(), 9)
