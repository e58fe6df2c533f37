from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmkd.losses.functional import kl_divergence
from mmkd.losses.functional_logits import (
    decoupled_kl,
    modulated_bce,
)
from mmkd.losses.functional_relations import image_of_prior, relation_distances, relation_loss

from .test_functional import pair

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0, 2])


def softmax(z: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in z) for x in z]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def kl(t: list[float], s: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(t, s))


def pearson(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    return covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


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
        with pytest.raises(ValueError, match=r"one shape \(N, K\)"):
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


def test_one_class_has_a_relation_within_it() -> None:
    student_NK, teacher_NK = pair(K=1)
    between_N, within_G = relation_distances(student_NK, teacher_NK, activation="sigmoid")
    assert (between_N == 0).all()
    expected = 1 - pearson(*([sigmoid(z) for z in x[:, 0].tolist()] for x in (student_NK, teacher_NK)))
    assert float(within_G) == pytest.approx(expected)


def test_image_of_prior() -> None:
    levels = [torch.zeros(2, 6, 1, 2), torch.zeros(2, 3, 1, 1)]
    assert image_of_prior(levels, (2, 1)).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]


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


def test_torch_is_all_that_is_needed() -> None:
    """The package around it imports more; the modules themselves do not."""
    code = """
import importlib.util, sys, types
for name in ("mmkd", "mmkd.losses"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name in ("kernels", "functional", "functional_logits", "functional_relations"):
    spec = importlib.util.spec_from_file_location(f"mmkd.losses.{name}", f"mmkd/losses/{name}.py")
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
unwanted = {"mmengine", "mmdet", "mmcv", "mmkd.registry", "mmkd.structures"} & set(sys.modules)
assert not unwanted, unwanted
import torch
s, t, y = torch.randn(8, 10, requires_grad=True), torch.randn(8, 10), torch.randint(10, (8,))
m, r = sys.modules["mmkd.losses.functional_logits"], sys.modules["mmkd.losses.functional_relations"]
(m.modulated_bce(s, t) + m.decoupled_kl(s, t, y, beta=8, temperature=4) + r.relation_loss(s, t)).backward()
assert s.grad.abs().sum() > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
