from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmkd.functional.relations import relation_distances, relation_loss

from .test_kl import pair


def softmax(z: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in z) for x in z]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def pearson(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    return covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("T", [1.0, 4.0])
def test_relations_by_hand(activation: Any, T: float) -> None:
    student_NK, teacher_NK = pair()
    groups = [0, 2, 0, 0, 2, 0, 2]
    form = softmax if activation == "softmax" else lambda z: [sigmoid(x) for x in z]
    Y_s = [form([z / T for z in row]) for row in student_NK.tolist()]
    Y_t = [form([z / T for z in row]) for row in teacher_NK.tolist()]
    rows = [T**2 * (1 - pearson(s, t)) for s, t in zip(Y_s, Y_t)]
    columns = [0.0, 0.0, 0.0]
    for g in (0, 2):
        members = [i for i, group in enumerate(groups) if group == g]
        for c in range(5):
            columns[g] += T**2 / 5 * (1 - pearson([Y_s[i][c] for i in members], [Y_t[i][c] for i in members]))
    between_N, within_G = relation_distances(
        student_NK,
        teacher_NK,
        temperature=T,
        activation=activation,
        group_N=torch.tensor(groups),
        groups=3,
    )
    torch.testing.assert_close(between_N, torch.tensor(rows, dtype=torch.float64))
    torch.testing.assert_close(within_G, torch.tensor(columns, dtype=torch.float64))


def test_relation_loss_for_a_batch_of_samples() -> None:
    student_NK, teacher_NK = pair()
    Y_s, Y_t = student_NK.softmax(1), teacher_NK.softmax(1)
    rows = sum(1 - pearson(s, t) for s, t in zip(Y_s.tolist(), Y_t.tolist())) / 7
    columns = sum(1 - pearson(s, t) for s, t in zip(Y_s.T.tolist(), Y_t.T.tolist())) / 5
    value = relation_loss(student_NK, teacher_NK, beta=2, gamma=0.5)
    assert float(value) == pytest.approx(2 * rows + 0.5 * columns)


def test_relations_do_not_see_scale_and_shift_of_scores() -> None:
    """A student whose scores are a linear function of the teacher's is at the minimum."""
    teacher_NK = pair()[1]
    scores = teacher_NK.sigmoid() * 0.3 + 0.2
    between_N, within_G = relation_distances(scores.logit(), teacher_NK, activation="sigmoid")
    assert between_N.abs().max() < 1e-12
    assert within_G.abs().max() < 1e-12
    opposite_N, _ = relation_distances((0.9 - scores).logit(), teacher_NK, activation="sigmoid")
    torch.testing.assert_close(opposite_N, torch.full((7,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relations_of_constant_scores(activation: Any, dtype: torch.dtype) -> None:
    """They have no correlation; the values and gradients are finite all the same."""
    constant = torch.full((4, 3), -2.0, dtype=dtype)
    varied = torch.randn(4, 3, dtype=dtype)
    for student_NK, teacher_NK, expected in (
        (constant, constant, 0.0),
        (constant, varied, 0.5),
        (varied, constant, 0.5),
    ):
        student_NK = student_NK.clone().requires_grad_()
        between_N, within_G = relation_distances(student_NK, teacher_NK, activation=activation)
        torch.testing.assert_close(between_N, torch.full((4,), expected, dtype=dtype), atol=1e-4, rtol=0)
        torch.testing.assert_close(within_G, torch.full((1,), expected, dtype=dtype), atol=1e-4, rtol=0)
        (between_N.sum() + within_G.sum()).backward()
        assert student_NK.grad is not None
        assert torch.isfinite(student_NK.grad).all()
    student_NK = constant.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(relation_loss(student_NK, varied, activation=activation), student_NK)
    assert 0 < gradient.abs().max() < 1e4, "a student that says nothing yet can begin to learn"


def test_groups_of_one_or_none_have_no_relation() -> None:
    student_NK, teacher_NK = pair()
    group_N = torch.tensor([0, 0, 0, 0, 0, 0, 2])
    _, within_G = relation_distances(student_NK, teacher_NK, group_N=group_N, groups=4)
    assert within_G[0] > 0
    assert (within_G[1:] == 0).all()


def test_one_class_has_a_relation_within_it() -> None:
    student_NK, teacher_NK = pair(K=1)
    between_N, within_G = relation_distances(student_NK, teacher_NK, activation="sigmoid")
    assert (between_N == 0).all()
    expected = 1 - pearson(*([sigmoid(z) for z in x[:, 0].tolist()] for x in (student_NK, teacher_NK)))
    assert float(within_G) == pytest.approx(expected)
