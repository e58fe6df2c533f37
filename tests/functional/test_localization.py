from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from mmkd.functional import localization
from mmkd.functional.localization import localization_kl, square_anchors, valuable_region

from .test_boxes import Box, areas, center_distance


def test_localization_kl_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4 * 6, dtype=torch.float64, generator=generator) * 5
    T, R = 10.0, 6
    expected = []
    for z_s, z_t in zip(student.tolist(), teacher.tolist()):
        total = 0.0
        for side in range(4):
            e_s = [math.exp(z / T) for z in z_s[side * R : side * R + R]]
            e_t = [math.exp(z / T) for z in z_t[side * R : side * R + R]]
            for s, t in zip(e_s, e_t):
                total += t / sum(e_t) * math.log((t / sum(e_t)) / (s / sum(e_s)))
        expected.append(T**2 * total / 4)
    value = localization_kl(student, teacher, temperature=T)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (3, 4)), r"\(N, 4·R\) with R > 1, found \(3, 4\)"),
        (((3, 10), (3, 10)), r"found \(3, 10\)"),
        (((3, 20), (3, 24)), "of equal shape"),
        (((20,), (20,)), r"found \(20,\)"),
    ],
)
def test_bad_shapes_of_distributions(shapes: tuple[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        localization_kl(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize(("stride", "scale"), [((8, 8), 8), ((16, 16), 4), ((8, 16), 8)])
def test_anchors_are_those_of_mmdet(stride: tuple[int, int], scale: int) -> None:
    generator = AnchorGenerator(
        strides=[stride], ratios=[1.0], octave_base_scale=scale, scales_per_octave=1, center_offset=0
    )
    assert torch.equal(square_anchors(5, 7, stride, scale), generator.grid_priors([(5, 7)], device="cpu")[0])


SIZES = {8: (16, 20), 16: (8, 10), 32: (4, 5), 64: (2, 3)}


def pyramid() -> tuple[Tensor, list[int]]:
    levels = [square_anchors(*size, (stride, stride), 8) for stride, size in SIZES.items()]
    return torch.cat(levels).double(), [len(level) for level in levels]


def objects(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, dtype=torch.float64, generator=generator) * 80
    side = torch.rand(count, 2, dtype=torch.float64, generator=generator) * 70 + 5
    return torch.cat([corner, corner + side], 1)


def region_by_hand(
    anchors: list[Box], per_level: list[int], gts: list[Box], alpha: float, nearness: str
) -> list[float]:
    weights = [0.0] * len(anchors)
    for gt in gts:
        ious = [areas(a, gt)[0] / areas(a, gt)[1] for a in anchors]
        candidates, start = [], 0
        for count in per_level:
            nearest = sorted(
                range(start, start + count),
                key=lambda m: math.dist(
                    ((anchors[m][0] + anchors[m][2]) / 2, (anchors[m][1] + anchors[m][3]) / 2),
                    ((gt[0] + gt[2]) / 2, (gt[1] + gt[3]) / 2),
                ),
            )
            candidates += [ious[m] for m in nearest[:9]]
            start += count
        mean = sum(candidates) / len(candidates)
        variance = sum((iou - mean) ** 2 for iou in candidates) / (len(candidates) - 1)
        threshold = mean + math.sqrt(variance)
        for m, anchor in enumerate(anchors):
            own = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
            near = (areas(anchor, gt)[0] / own if nearness == "iof" else ious[m]) - center_distance(
                anchor, gt
            )
            if alpha * threshold <= near < threshold:
                weights[m] = max(weights[m], ious[m])
    return weights


@pytest.mark.parametrize("nearness", ["iof", "iou"])
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_region_by_hand(nearness: Any, alpha: float) -> None:
    anchors, per_level = pyramid()
    gts = objects(6)
    expected = region_by_hand(anchors.tolist(), per_level, gts.tolist(), alpha, nearness)
    value = valuable_region(anchors, per_level, gts, alpha, nearness)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    assert 0 < (value > 0).sum() < len(value)


def test_region_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors, per_level = pyramid()
    at_once = valuable_region(anchors, per_level, objects(9))
    monkeypatch.setattr(localization, "_CHUNK_CPU", 2 * len(anchors))
    assert torch.equal(valuable_region(anchors, per_level, objects(9)), at_once)


def test_region_grows_with_objects_and_as_alpha_falls() -> None:
    anchors, per_level = pyramid()
    sizes = [(valuable_region(anchors, per_level, objects(4), a) > 0).sum() for a in (0.9, 0.5, 0.1)]
    assert sizes[0] < sizes[1] < sizes[2]
    both = valuable_region(anchors, per_level, objects(4))
    first = valuable_region(anchors, per_level, objects(4)[:2])
    second = valuable_region(anchors, per_level, objects(4)[2:])
    assert torch.equal(both, torch.maximum(first, second))


def test_no_objects_no_region() -> None:
    anchors, per_level = pyramid()
    value = valuable_region(anchors, per_level, torch.zeros(0, 4))
    assert value.shape == anchors.shape[:1]
    assert not value.any()
    assert len(valuable_region(torch.zeros(0, 4), [0], objects(2))) == 0


def test_bad_region() -> None:
    anchors, per_level = pyramid()
    with pytest.raises(ValueError, match="found levels of"):
        valuable_region(anchors, per_level[:-1], objects(2))
    with pytest.raises(ValueError, match="nearness must be one of iof, iou, found 'giou'"):
        valuable_region(anchors, per_level, objects(2), nearness="giou")  # type: ignore[arg-type]
