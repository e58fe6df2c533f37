"""KL divergences of many priors, forward and backward in one pass over the logits.

Built from PyTorch's operations, a KL divergence keeps half a dozen (N, K) tensors for its backward pass. Here
the gradient is computed together with the value, chunk by chunk while the chunk is in the cache, and only the
gradient is kept. Shape suffixes: N priors, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements per chunk: what fits a core's cache; what fills a GPU.
_CHUNK_CPU, _CHUNK_GPU = 2**17, 2**24


def softmax_kl(student_NK: Tensor, teacher_NK: Tensor, gradient_NK: Tensor) -> Tensor:
    """KL of softmaxes per prior, and its gradient with respect to the student's logits.

    Args:
        student_NK: logits, float32 or float64.
        teacher_NK: logits of the same shape.
        gradient_NK: receives the gradient.

    Returns:
        The values (N,).
    """
    log_s_NK, log_t_NK = torch.log_softmax(student_NK, 1, out=gradient_NK), F.log_softmax(teacher_NK, dim=1)
    p_t_NK = log_t_NK.exp()
    value_N = log_t_NK.sub_(log_s_NK).mul_(p_t_NK).sum(dim=1)
    log_s_NK.exp_().sub_(p_t_NK)
    return value_N


def sigmoid_kl(student_NK: Tensor, teacher_NK: Tensor, gradient_NK: Tensor) -> Tensor:
    """As `softmax_kl`, for independent sigmoids, summed over the classes."""
    # softplus(s) − softplus(t) + σ(t)(t − s), where softplus(x) = max(x, 0) + log(1 + e^−|x|) and the two
    # logarithms are merged: log((1 + a) / (1 + b)) = log1p((a − b) / (1 + b)). The large terms come first,
    # where they cancel.
    value_NK = student_NK.clamp(min=0).sub_(teacher_NK.clamp(min=0))
    p_t_NK = teacher_NK.sigmoid()
    value_NK.addcmul_(p_t_NK, teacher_NK - student_NK)
    e_s_NK, e_t_NK = student_NK.abs().neg_().exp_(), teacher_NK.abs().neg_().exp_()
    value_NK.add_(e_s_NK.sub_(e_t_NK).div_(e_t_NK.add_(1)).log1p_())
    torch.sigmoid(student_NK, out=gradient_NK).sub_(p_t_NK)
    return value_NK.sum(dim=1)


class KLDivergence(torch.autograd.Function):
    """T² · KL per prior, (N,); the teacher gets no gradient."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, student_NK: Tensor, teacher_NK: Tensor, temperature: float, activation: str
    ) -> Tensor:
        dtype = torch.promote_types(student_NK.dtype, torch.float32)
        kernel = softmax_kl if activation == "softmax" else sigmoid_kl
        count, classes = student_NK.shape
        value_N = student_NK.new_empty(count, dtype=dtype)
        wants_gradient = ctx.needs_input_grad[0]
        gradient_NK = torch.empty_like(student_NK) if wants_gradient else None
        chunk = _CHUNK_CPU if student_NK.device.type == "cpu" else _CHUNK_GPU
        rows = max(1, chunk // max(1, classes))
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            student, teacher = student_NK[part].to(dtype), teacher_NK[part].to(dtype)
            if temperature != 1:
                student, teacher = student / temperature, teacher / temperature
            if gradient_NK is not None and gradient_NK.dtype == dtype:
                gradient = gradient_NK[part]
            else:
                gradient = torch.empty_like(student)
            torch.mul(kernel(student, teacher, gradient), temperature**2, out=value_N[part])
            if temperature != 1:
                gradient.mul_(temperature)
            if gradient_NK is not None and gradient_NK.dtype != dtype:
                gradient_NK[part] = gradient
        if gradient_NK is not None:
            ctx.save_for_backward(gradient_NK)
        return value_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: D102
        (gradient_NK,) = ctx.saved_tensors
        return gradient_NK * grad_N.to(gradient_NK.dtype)[:, None], None, None, None
