from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.functional import kernels
from mmkd.functional.kernels import KLDivergence


def reference(student_NK: Tensor, teacher_NK: Tensor, temperature: float, activation: str) -> Tensor:
    """The definition, in float64."""
    student, teacher = student_NK.double() / temperature, teacher_NK.double() / temperature
    if activation == "softmax":
        value_NK = F.kl_div(
            F.log_softmax(student, 1), F.log_softmax(teacher, 1), log_target=True, reduction="none"
        )
    else:
        on = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
        value_NK = on + (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * value_NK.sum(1)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 12.0])
def test_values_and_gradients(activation: str, temperature: float, scale: float) -> None:
    student = (torch.randn(50, 20) * scale).requires_grad_()
    teacher = torch.randn(50, 20) * scale
    value = KLDivergence.apply(student, teacher, temperature, activation)
    weight = torch.rand(50)
    (gradient,) = torch.autograd.grad((value * weight).sum(), student)
    exact = reference(student, teacher, temperature, activation)
    (expected,) = torch.autograd.grad((exact * weight).sum(), student)
    largest = (exact / temperature**2).abs().max().clamp(min=1)
    assert float((value - exact).abs().max() / temperature**2 / largest) < 1e-6
    assert float((gradient - expected).abs().max() / temperature) < 1e-6


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_extreme_logits(activation: str) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [88.0, -88.0, 50.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [88.0, -88.0, 50.0]])
    value = KLDivergence.apply(student, teacher, 1.0, activation)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert value[0] > 1e4
    assert value[1] == 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch, activation: str) -> None:
    student, teacher = torch.randn(101, 7, requires_grad=True), torch.randn(101, 7)
    found: list[tuple[Any, Any]] = []
    for chunk in (10**9, 35, 1):
        monkeypatch.setattr(kernels, "_CHUNK_CPU", chunk)
        value = KLDivergence.apply(student, teacher, 2.0, activation)
        found.append((value, torch.autograd.grad(value.sum(), student)[0]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_no_prior_and_no_gradient() -> None:
    student = torch.randn(0, 5, requires_grad=True)
    value = KLDivergence.apply(student, torch.randn(0, 5), 1.0, "softmax")
    value.sum().backward()
    assert student.grad is not None
    assert student.grad.shape == (0, 5)
    with torch.no_grad():
        assert KLDivergence.apply(torch.randn(3, 5), torch.randn(3, 5), 1.0, "sigmoid").shape == (3,)


def test_half_precision_keeps_a_gradient_of_its_kind() -> None:
    student = torch.randn(4, 6, dtype=torch.bfloat16, requires_grad=True)
    value = KLDivergence.apply(student, torch.randn(4, 6), 1.0, "softmax")
    assert value.dtype == torch.float32
    value.sum().backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


def test_twice_backward_is_the_same() -> None:
    student = torch.randn(4, 6, requires_grad=True)
    value = KLDivergence.apply(student, torch.randn(4, 6), 1.0, "softmax").sum()
    first = torch.autograd.grad(value, student, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, student), first)
