from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkd.doctor.agreement import Detections, better_order, clearly_better, judge, match


def image(*objects: tuple[float, int, int | None], shift: float = 0) -> Detections:
    """Boxes of 20×20 at x, of a class, called another; ``None`` is not found."""
    found = [(x, said) for x, _, said in objects if said is not None]
    return Detections(
        100,
        400,
        torch.tensor([[x + shift, 0, x + shift + 20, 20] for x, _ in found]).reshape(-1, 4),
        torch.linspace(0.9, 0.5, max(1, len(found)))[: len(found)],
        torch.tensor([said for _, said in found], dtype=torch.long),
        [
            {"bbox": [x, 0.0, x + 20.0, 20.0], "bbox_label": label, "ignore_flag": 0}
            for x, label, _ in objects
        ],
    )


def test_match_counts_each_object_once() -> None:
    confusion, objects = match([image((0.0, 0, 0), (50.0, 1, 2), (100.0, 1, None))], 3)
    assert objects == 3
    assert confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    twice = image((0.0, 0, 0))
    twice = Detections(
        100,
        400,
        twice.boxes_N4.repeat(2, 1),
        torch.tensor([0.3, 0.8]),
        torch.tensor([0, 1]),
        twice.instances,
    )
    assert match([twice], 3)[0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]  # the surer one
    assert match([image((0.0, 0, 0), shift=15.0)], 3)[0].sum() == 0


def test_judge_explains_an_order() -> None:
    objects = [(25.0 * i, i % 3, (i + 1) % 3) for i in range(30)]
    wrong = judge([image(*objects)], ["a", "b", "c"])
    assert (wrong.ap, wrong.right, wrong.recall, wrong.matched) == (0, 0, 1, 30)
    assert wrong.order == {1: 0, 2: 1, 0: 2}
    assert wrong.ap_best == pytest.approx(1)
    right = judge([image(*[(x, label, label) for x, label, _ in objects])], ["a", "b", "c"])
    assert (right.ap, right.ap_best, right.right, right.order) == (1, 1, 1, {})


@pytest.mark.parametrize(("ap", "better"), [(0.1, False), (0.14, False), (0.16, True)])
def test_clearly_better(ap: float, better: bool) -> None:
    assert clearly_better(ap, 0.1) is better
    assert not clearly_better(0.6, 0.5), "a fifth more may be chance"


def test_without_a_box_or_with_few() -> None:
    nothing = judge([image((0.0, 0, None))], ["a", "b"])
    assert (nothing.ap, nothing.recall, nothing.matched) == (0, 0, 0)
    few = [(40.0 * i, i % 2, 1 - i % 2) for i in range(6)]
    assert judge([image(*few)], ["a", "b"]).order == {}  # of three objects of a class nothing follows


@pytest.mark.parametrize(
    ("confusion", "order"),
    [
        ([[9, 0], [0, 9]], {}),
        ([[0, 12], [12, 0]], {0: 1, 1: 0}),
        ([[900, 0, 0], [0, 0, 12], [0, 12, 0]], {1: 2, 2: 1}),  # however frequent the first is
        ([[900, 0, 0], [0, 0, 9], [0, 9, 0]], {}),  # too few
        ([[900, 0, 0], [0, 0, 90], [0, 9, 0]], {}),  # of one of the two
        ([[9, 9], [0, 0]], {}),  # all are called the first
        ([[5, 4], [4, 5]], {}),  # confused, not exchanged
        ([[4, 5], [5, 4]], {}),
    ],
)
def test_better_order(confusion: list[list[int]], order: dict[int, int]) -> None:
    assert better_order(np.array(confusion)) == order


def test_an_order_that_detects_no_better_is_not_advised() -> None:
    """More objects get their name by exchanging two classes, and the AP falls: the sure boxes were right."""
    objects = [(25.0 * i, i % 2, 1 - i % 2) for i in range(24)]
    found = image(*objects)
    sure = torch.tensor([i % 2 for i in range(24)])
    both = Detections(
        100,
        800,
        torch.cat([found.boxes_N4, found.boxes_N4 + torch.tensor([0.0, 6.0, 0.0, 6.0])]),
        torch.cat([torch.full((24,), 0.2), torch.full((24,), 0.9)]),
        torch.cat([1 - sure, sure]),
        found.instances,
    )
    seen = judge([both], ["a", "b"])
    assert seen.order == {}
    assert seen.ap_best == seen.ap
