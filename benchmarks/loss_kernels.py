"""Time and memory of the KL divergences, forward and backward, against PyTorch's own operations.

    python benchmarks/loss_kernels.py

The forms take turns; the figures are medians of ratios in this run. Memory is the allocator's peak during one
call, without the logits and their gradient, in (N, K) float32 tensors. MMRazor's form is included if it is
installed, see benchmarks/razor.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import Loss, loss_step, paired_ratios, peak_bytes, take_turns, write
from mmdet.models.losses import KnowledgeDistillationKLDivLoss
from razor import import_mmrazor
from torch import Tensor

from mmkd.functional.kl import kl_divergence

SIZES = [(4_000, 1), (4_000, 80), (44_000, 3), (44_000, 80), (44_000, 1203)]
ROUNDS = 21
OUT: Path | None = None


def eager_softmax(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """The softmax KL by log_softmax, softmax, kl_div and a sum."""
    log_s_NK, p_t_NK = F.log_softmax(student_NK, 1), F.softmax(teacher_NK, 1)
    return F.kl_div(log_s_NK, p_t_NK, reduction="none").sum(1).sum()


def eager_sigmoid(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Binary cross-entropy with the teacher's probabilities, minus their entropy."""
    p_t_NK = teacher_NK.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student_NK, p_t_NK, reduction="none")
    return (cross - F.binary_cross_entropy_with_logits(teacher_NK, p_t_NK, reduction="none")).sum(1).sum()


def forms(activation: str, registry: Any) -> dict[str, Loss]:
    """All implementations for one activation."""
    ours: Loss = lambda s, t: kl_divergence(s, t, activation=activation, reduction="sum")  # type: ignore[arg-type]  # noqa: E731
    if activation == "sigmoid":
        return {"mmkd": ours, "PyTorch": eager_sigmoid}
    losses = {
        "mmkd": ours,
        "PyTorch": eager_softmax,
        "mmdet": KnowledgeDistillationKLDivLoss(reduction="sum", T=1),
    }
    if not isinstance(registry, str):
        losses["MMRazor"] = registry.build({"type": "mmrazor.KLDivergence", "reduction": "sum"})
    return losses


def main() -> None:
    """Print the table and write the JSON."""
    torch.manual_seed(0)
    registry = import_mmrazor()
    others = ["PyTorch", "mmdet", "MMRazor"]
    rows = []
    print("| | N | K | " + " | ".join(f"time, {name} / mmkd" for name in others), end="")
    print(" | memory, PyTorch | memory, mmkd |\n" + "|---" * 8 + "|")
    for count, classes in SIZES:
        for activation in ("softmax", "sigmoid"):
            if activation == "softmax" and classes == 1:
                continue
            student, teacher = torch.randn(count, classes, requires_grad=True), torch.randn(count, classes)
            steps = {
                name: loss_step(loss, student, teacher) for name, loss in forms(activation, registry).items()
            }
            speed = paired_ratios(take_turns(steps, ROUNDS), "mmkd")
            memory = {}
            for name, step in steps.items():
                student.grad = None
                memory[name] = peak_bytes(step) / (4 * student.numel()) - 1
            rows.append(
                {"activation": activation, "N": count, "K": classes, "speed": speed, "memory": memory}
            )
            cells = [f"{speed[name]:.1f}" if name in speed else "" for name in others]
            cells += [f"{memory['PyTorch']:.1f}", f"{memory['mmkd']:.1f}"]
            print(f"| {activation} | {count} | {classes} | {' | '.join(cells)} |", flush=True)
    write("loss_kernels", OUT, rows=rows)


if __name__ == "__main__":
    main()
