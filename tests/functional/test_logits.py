from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmkd.functional.kl import kl_divergence
from mmkd.functional.logits import (
    decoupled_kl,
    modulated_bce,
)
from mmkd.functional.relations import relation_distances, relation_loss

from .test_kl import pair
from .test_relations import sigmoid, softmax

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0, 2])


def kl(t: list[float], s: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(t, s))


@pytest.mark.parametrize("beta", [1, 2.0])
def test_modulated_bce_by_hand(beta: float) -> None:
    student_NK, teacher_NK = pair()
    expected = []
    for z_s, z_t in zip(student_NK.tolist(), teacher_NK.tolist()):
        total = 0.0
        for s, t in zip(map(sigmoid, z_s), map(sigmoid, z_t)):
            total += abs(t - s) ** beta * -(t * math.log(s) + (1 - t) * math.log(1 - s))
        expected.append(total)
    value = modulated_bce(student_NK, teacher_NK, beta=beta, reduction="none")
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_decoupled_kl_by_hand(T: float) -> None:
    student_NK, teacher_NK = pair()
    expected = []
    for z_s, z_t, y in zip(student_NK.tolist(), teacher_NK.tolist(), TARGETS.tolist()):
        z_s, z_t = [z / T for z in z_s], [z / T for z in z_t]
        p_s, p_t = softmax(z_s)[y], softmax(z_t)[y]
        target = kl([p_t, 1 - p_t], [p_s, 1 - p_s])
        others = kl(softmax(z_t[:y] + z_t[y + 1 :]), softmax(z_s[:y] + z_s[y + 1 :]))
        expected.append(T**2 * (0.7 * target + 3 * others))
    value = decoupled_kl(student_NK, teacher_NK, TARGETS, alpha=0.7, beta=3, temperature=T, reduction="none")
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_decoupled_kl_with_hintons_factor_is_hintons() -> None:
    """KL = KL of the target + (1 − p_y) · KL of the others."""
    student_NK, teacher_NK = pair()
    target_N = decoupled_kl(student_NK, teacher_NK, TARGETS, beta=0, reduction="none")
    others_N = decoupled_kl(student_NK, teacher_NK, TARGETS, alpha=0, reduction="none")
    left_N = 1 - teacher_NK.softmax(1).gather(1, TARGETS[:, None]).squeeze(1)
    torch.testing.assert_close(
        target_N + left_N * others_N, kl_divergence(student_NK, teacher_NK, reduction="none")
    )


def test_two_classes_leave_the_target_alone() -> None:
    student_NK, teacher_NK = pair(K=2)
    target_N = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    value = decoupled_kl(student_NK, teacher_NK, target_N, alpha=1, beta=5)
    torch.testing.assert_close(value, kl_divergence(student_NK, teacher_NK))


def bce(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    return modulated_bce(student_NK, teacher_NK, reduction="sum")


def dkd(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    target_N = torch.arange(len(student_NK)) % student_NK.shape[1]
    return decoupled_kl(student_NK, teacher_NK, target_N, temperature=2, reduction="sum")


def dist(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    return relation_loss(student_NK, teacher_NK, temperature=2)


def dist_sigmoid(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    return relation_loss(student_NK, teacher_NK, activation="sigmoid")


ALL = pytest.mark.parametrize("loss", [bce, dkd, dist, dist_sigmoid])


@ALL
def test_gradcheck(loss: Any) -> None:
    student_NK, teacher_NK = pair(N=4, K=4)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher_NK), student_NK.requires_grad_())


def test_the_gradient_of_bce_goes_through_its_weight() -> None:
    student_NK, teacher_NK = pair(N=1, K=1)
    student_NK.requires_grad_()
    (gradient,) = torch.autograd.grad(bce(student_NK, teacher_NK), student_NK)
    s, t = sigmoid(float(student_NK)), sigmoid(float(teacher_NK))
    entropy = -(t * math.log(s) + (1 - t) * math.log(1 - s))
    slope_of_weight = math.copysign(1, s - t) * s * (1 - s)
    assert float(gradient) == pytest.approx(abs(t - s) * (s - t) + slope_of_weight * entropy)


@ALL
def test_gradient_only_to_the_student_and_none_at_identity(loss: Any) -> None:
    student_NK, teacher_NK = (x.requires_grad_() for x in pair())
    loss(student_NK, teacher_NK).backward()
    assert teacher_NK.grad is None
    assert student_NK.grad is not None
    same = teacher_NK.detach().clone().requires_grad_()
    loss(same, teacher_NK).backward()
    torch.testing.assert_close(same.grad, torch.zeros_like(same), atol=1e-12, rtol=0)


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_inside_autocast(loss: Any, dtype: torch.dtype) -> None:
    student_NK, teacher_NK = (x.to(dtype) for x in pair(dtype=torch.float32))
    expected = loss(student_NK.float(), teacher_NK.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student_NK, teacher_NK)
    assert value.dtype == torch.float32
    assert value == expected


@ALL
def test_float32_is_near_float64(loss: Any) -> None:
    student_NK, teacher_NK = pair(dtype=torch.float32)
    exact = loss(student_NK.double(), teacher_NK.double())
    torch.testing.assert_close(loss(student_NK, teacher_NK).double(), exact, rtol=1e-5, atol=1e-6)


@ALL
def test_huge_logits(loss: Any) -> None:
    student_NK = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    teacher_NK = torch.tensor([[-1e4, 1e4, 1.0], [-1e4, 1e4, 1e4]])
    value = loss(student_NK, teacher_NK)
    value.backward()
    assert value > 0
    assert torch.isfinite(value)
    assert torch.isfinite(student_NK.grad).all()


@ALL
def test_no_prior(loss: Any) -> None:
    nothing = torch.zeros(0, 3, requires_grad=True)
    value = loss(nothing, torch.zeros(0, 3))
    assert value == 0
    assert value.requires_grad


@pytest.mark.parametrize("loss", [modulated_bce, decoupled_kl])
def test_weights_and_reductions_agree(loss: Any) -> None:
    inputs = (*pair(), *([TARGETS] if loss is decoupled_kl else []))
    weight_N = torch.rand(7, dtype=torch.float64)
    each_N = loss(*inputs, reduction="none")
    torch.testing.assert_close(loss(*inputs, weight_N=weight_N, reduction="none"), each_N * weight_N)
    total = (each_N * weight_N).sum()
    torch.testing.assert_close(loss(*inputs, weight_N=weight_N, reduction="sum"), total)
    torch.testing.assert_close(loss(*inputs, weight_N=weight_N), total / 7)
    torch.testing.assert_close(loss(*inputs, weight_N=weight_N, avg_factor=2.0), total / 2)
    with pytest.raises(ValueError, match=r"expected weights \(7,\), found \(3,\)"):
        loss(*inputs, weight_N=torch.ones(3))


@pytest.mark.parametrize("shape", [(7, 4), (6, 5), (7,), (7, 5, 1)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    student_NK, other = pair()[0], torch.zeros(shape)
    for loss in (
        lambda: modulated_bce(student_NK, other),
        lambda: decoupled_kl(student_NK, other, TARGETS),
        lambda: relation_distances(student_NK, other),
    ):
        with pytest.raises(ValueError, match=r"equal shape \(N, K\)"):
            loss()


@pytest.mark.parametrize(
    "targets", [TARGETS[:3], TARGETS.float(), TARGETS[:, None], torch.ones(7, dtype=torch.bool)]
)
def test_bad_targets(targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected targets \(7,\) of integers, found"):
        decoupled_kl(*pair(), targets)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t: modulated_bce(s, t, beta=0.5), "beta must be a number ≥ 1, found 0.5"),
        (lambda s, t: modulated_bce(s, t, beta=float("inf")), "found inf"),
        (lambda s, t: modulated_bce(s, t, reduction="mean"), "one of none, sum, batchmean, found 'mean'"),
        (lambda s, t: decoupled_kl(s, t, TARGETS, alpha=-1), "alpha must be a number ≥ 0, found -1"),
        (lambda s, t: decoupled_kl(s, t, TARGETS, beta="8"), "beta must be a number ≥ 0, found '8'"),
        (lambda s, t: decoupled_kl(s, t, TARGETS, alpha=0, beta=0), "alpha and beta are both 0"),
        (lambda s, t: decoupled_kl(s, t, TARGETS, temperature=0), "temperature must be a number above 0"),
        (lambda s, t: decoupled_kl(s, t, TARGETS, reduction="avg"), "found 'avg'"),
        (lambda s, t: decoupled_kl(s[:, :1], t[:, :1], TARGETS), "activation='sigmoid'"),
        (lambda s, t: relation_distances(s, t, activation="tanh"), "one of softmax, sigmoid, found 'tanh'"),
        (lambda s, t: relation_distances(s, t, temperature=-1), "temperature must be a number above 0"),
        (lambda s, t: relation_distances(s[:, :1], t[:, :1]), "activation='sigmoid'"),
        (lambda s, t: relation_distances(s, t, group_N=TARGETS[:2]), r"expected groups \(7,\)"),
        (lambda s, t: relation_loss(s, t, gamma=float("nan")), "gamma must be a number ≥ 0, found nan"),
    ],
)
def test_bad_options(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*pair())


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 5),
    K=st.integers(2, 6),
    scale=st.floats(0, 1e4),
    seed=st.integers(0, 1000),
)
def test_finite_and_not_negative(N: int, K: int, scale: float, seed: int) -> None:
    student_NK, teacher_NK = torch.randn(2, N, K, generator=torch.Generator().manual_seed(seed)) * scale
    student_NK.requires_grad_()
    for loss in (bce, dkd, dist, dist_sigmoid):
        value = loss(student_NK, teacher_NK)
        assert torch.isfinite(value)
        assert value >= -1e-5
        (gradient,) = torch.autograd.grad(value, student_NK)
        assert torch.isfinite(gradient).all()
        assert loss(teacher_NK, teacher_NK).abs() < 1e-6


def test_cross_entropy_is_what_the_weight_multiplies() -> None:
    """Far from the teacher the value is the cross entropy itself."""
    student_NK, teacher_NK = torch.full((1, 2), 30.0), torch.full((1, 2), -30.0)
    expected = F.binary_cross_entropy_with_logits(student_NK, teacher_NK.sigmoid(), reduction="sum")
    torch.testing.assert_close(modulated_bce(student_NK, teacher_NK), expected)
