from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmkd.functional.kl import kl_divergence, standardized_logits


def pair(N: int = 7, K: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, N, K, dtype=dtype, generator=generator) * 3)  # type: ignore[return-value]


def test_softmax_form_by_hand() -> None:
    student_NK, teacher_NK = pair(N=4, K=3)
    T = 3.0
    by_hand = []
    for z_s, z_t in zip(student_NK.tolist(), teacher_NK.tolist()):
        p_s = [math.exp(z / T) / sum(math.exp(y / T) for y in z_s) for z in z_s]
        p_t = [math.exp(z / T) / sum(math.exp(y / T) for y in z_t) for z in z_t]
        by_hand.append(T**2 * sum(t * math.log(t / s) for t, s in zip(p_t, p_s)))
    value = kl_divergence(student_NK, teacher_NK, temperature=T, reduction="none")
    torch.testing.assert_close(value, torch.tensor(by_hand, dtype=torch.float64))


def test_sigmoid_form_by_hand() -> None:
    student_NK, teacher_NK = pair(N=4, K=3)
    T = 2.0

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z / T))

    by_hand = []
    for z_s, z_t in zip(student_NK.tolist(), teacher_NK.tolist()):
        total = 0.0
        for s, t in zip(map(sigmoid, z_s), map(sigmoid, z_t)):
            total += t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
        by_hand.append(T**2 * total)
    value = kl_divergence(student_NK, teacher_NK, temperature=T, activation="sigmoid", reduction="none")
    torch.testing.assert_close(value, torch.tensor(by_hand, dtype=torch.float64))


def test_equals_torch_batchmean() -> None:
    s, t = pair()
    T = 4.0
    published = F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T**2
    torch.testing.assert_close(kl_divergence(s, t, temperature=T, reduction="batchmean"), published)


def test_equals_kldivloss_mean_with_cross_entropy() -> None:
    s, t = pair()
    labels, T, alpha = torch.arange(7) % 5, 6.0, 0.3
    published = nn.KLDivLoss()(F.log_softmax(s / T, 1), F.softmax(t / T, 1)) * (
        alpha * T * T
    ) + F.cross_entropy(s, labels) * (1 - alpha)
    ours = alpha * kl_divergence(s, t, temperature=T, reduction="mean") + (1 - alpha) * F.cross_entropy(
        s, labels
    )
    torch.testing.assert_close(ours, published)


def test_equals_the_pytorch_tutorial() -> None:
    s, t = pair()
    labels, T = torch.arange(7) % 5, 2.0
    soft_t, log_s = F.softmax(t / T, dim=-1), F.log_softmax(s / T, dim=-1)
    published = 0.25 * torch.sum(soft_t * (soft_t.log() - log_s)) / log_s.size(0) * T**2
    published = published + 0.75 * F.cross_entropy(s, labels)
    ours = 0.25 * kl_divergence(s, t, temperature=T) + 0.75 * F.cross_entropy(s, labels)
    torch.testing.assert_close(ours, published)


def test_standardized_by_hand() -> None:
    student_NK, teacher_NK = pair(N=4, K=5)
    T, by_hand = 2.0, []

    def probabilities(z: list[float]) -> list[float]:
        mean = sum(z) / len(z)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in z) / (len(z) - 1))
        e = [math.exp((x - mean) / deviation / T) for x in z]
        return [x / sum(e) for x in e]

    for z_s, z_t in zip(student_NK.tolist(), teacher_NK.tolist()):
        p_s, p_t = probabilities(z_s), probabilities(z_t)
        by_hand.append(T**2 * sum(t * math.log(t / s) for t, s in zip(p_t, p_s)))
    value = kl_divergence(student_NK, teacher_NK, temperature=T, standardize=True, reduction="none")
    torch.testing.assert_close(value, torch.tensor(by_hand, dtype=torch.float64))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_standardized_does_not_see_scale_and_shift(activation: str) -> None:
    s, t = pair()
    options = {"activation": activation, "standardize": True, "reduction": "none"}
    expected = kl_divergence(s, t, **options)
    torch.testing.assert_close(kl_divergence(5 * s - 3, t / 7 + 1, **options), expected)
    torch.testing.assert_close(kl_divergence(5 * s - 3, s, **options), torch.zeros_like(expected))
    assert (expected > 0).all()


def test_standardized_gradcheck() -> None:
    s, t = pair(N=3, K=4)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_divergence(x, t, temperature=2, standardize=True), s)


def test_standardized_constant_logits() -> None:
    s = torch.full((2, 4), -4.6, requires_grad=True)
    value = kl_divergence(s, torch.randn(2, 4), standardize=True)
    value.backward()
    assert value > 0
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    assert 0 < s.grad.abs().max() < 1e4
    assert kl_divergence(s, s.detach(), standardize=True) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_standardized_in_float32_inside_autocast(dtype: torch.dtype) -> None:
    s, t = (x.to(dtype) for x in pair(dtype=torch.float32))
    expected = kl_divergence(s.float(), t.float(), standardize=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kl_divergence(s, t, standardize=True)
    assert value.dtype == standardized_logits(s).dtype == torch.float32
    assert value == expected


@pytest.mark.parametrize("K", [1, 2])
def test_standardized_needs_three_classes(K: int) -> None:
    with pytest.raises(ValueError, match="standardize=False"):
        kl_divergence(*pair(K=K), activation="sigmoid", standardize=True)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_weights_and_reductions_agree(activation: str) -> None:
    s, t = pair()
    weight = torch.rand(7, dtype=torch.float64)
    options = {"activation": activation, "weight_N": weight}
    each = kl_divergence(s, t, reduction="none", **options)
    torch.testing.assert_close(kl_divergence(s, t, reduction="sum", **options), each.sum())
    torch.testing.assert_close(kl_divergence(s, t, **options), each.sum() / 7)
    torch.testing.assert_close(kl_divergence(s, t, avg_factor=2.0, **options), each.sum() / 2)
    torch.testing.assert_close(
        kl_divergence(s, t, avg_factor=2.0, reduction="mean", **options), each.sum() / 2 / 5
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("T", [1.0, 4.0])
def test_gradcheck(activation: str, T: float) -> None:
    s, t = pair(N=3, K=4)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_divergence(x, t, temperature=T, activation=activation), s)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_stable_for_huge_logits(activation: str) -> None:
    s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    t = torch.tensor([[-1e4, 1e4, 1.0], [-1e4, 1e4, 1e4]])
    value = kl_divergence(s, t, activation=activation, reduction="none")
    assert torch.isfinite(value).all()
    assert value[1] == 0
    value.sum().backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_inside_autocast(dtype: torch.dtype) -> None:
    s, t = (x.to(dtype) for x in pair(dtype=torch.float32))
    expected = kl_divergence(s.float(), t.float(), temperature=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kl_divergence(s, t, temperature=2.0)
    assert value.dtype == torch.float32
    assert value == expected


def test_one_class_softmax_names_the_sigmoid_form() -> None:
    one = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="activation='sigmoid'"):
        kl_divergence(one, one)
    assert kl_divergence(one, one + 1, activation="sigmoid") > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, found 0"),
        ({"temperature": -1.0}, "found -1.0"),
        ({"temperature": float("nan")}, "found nan"),
        ({"temperature": "4"}, "found '4'"),
        ({"activation": "relu"}, "one of softmax, sigmoid, found 'relu'"),
        ({"reduction": "avg"}, "one of none, sum, batchmean, mean, found 'avg'"),
        ({"standardize": 1}, "standardize must be True or False, found 1"),
        ({"weight_N": torch.ones(3)}, r"expected weights \(7,\), found \(3,\)"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kl_divergence(*pair(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", ["sum", "batchmean", "mean"])
def test_no_prior_is_zero(reduction: Any) -> None:
    student_NK = torch.zeros(0, 3, requires_grad=True)
    loss = kl_divergence(student_NK, torch.zeros(0, 3), reduction=reduction)
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize("shape", [(7, 4), (6, 5), (7,), (7, 5, 1)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"equal shape \(N, K\)"):
        kl_divergence(pair()[0], torch.zeros(shape))


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 5),
    K=st.integers(2, 6),
    T=st.floats(0.5, 20),
    scale=st.floats(0, 1e4),
    activation=st.sampled_from(["softmax", "sigmoid"]),
    seed=st.integers(0, 1000),
)
def test_finite_and_not_negative(N: int, K: int, T: float, scale: float, activation: str, seed: int) -> None:
    s, t = torch.randn(2, N, K, generator=torch.Generator().manual_seed(seed)) * scale
    value = kl_divergence(s, t, temperature=T, activation=activation, reduction="sum")
    assert torch.isfinite(value)
    assert value >= -1e-5 * max(1.0, T**2)
    assert kl_divergence(t, t, temperature=T, activation=activation, reduction="sum") == 0
