"""Time and memory of the KL divergences, forward and backward, against PyTorch's own operations.

    python benchmarks/loss_kernels.py

Each pair takes turns; the figures are ratios of medians in this run. Memory is the peak of what the allocator
gave during one call, beside the logits and their gradient, in (N, K) float32 tensors.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import mmkd
from mmkd.losses.functional import kl_divergence

SIZES = [(4_000, 1), (4_000, 80), (44_000, 3), (44_000, 80), (44_000, 1203)]
OUT = Path("work_dirs/benchmarks/loss_kernels.json")
Loss = Callable[[Tensor, Tensor], Tensor]


def eager_softmax(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """As in mmdet and MMRazor: log_softmax, softmax, kl_div."""
    log_s_NK, p_t_NK = F.log_softmax(student_NK, 1), F.softmax(teacher_NK, 1)
    return F.kl_div(log_s_NK, p_t_NK, reduction="none").sum(1).sum()


def eager_sigmoid(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Binary cross entropy of the teacher's probabilities less their entropy."""
    p_t_NK = teacher_NK.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student_NK, p_t_NK, reduction="none")
    return (cross - F.binary_cross_entropy_with_logits(teacher_NK, p_t_NK, reduction="none")).sum(1).sum()


def ours(activation: str) -> Loss:
    """mmkd's."""
    return lambda s, t: kl_divergence(s, t, activation=activation, reduction="sum")  # type: ignore[arg-type]


def call(loss: Loss, student_NK: Tensor, teacher_NK: Tensor) -> None:
    """Forward and backward."""
    student_NK.grad = None
    loss(student_NK, teacher_NK).backward()


def peak(loss: Loss, student_NK: Tensor, teacher_NK: Tensor) -> float:
    """The most that was allocated at once beyond the gradient, in (N, K) float32 tensors."""
    student_NK.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call(loss, student_NK, teacher_NK)
    level = most = 0
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        most = max(most, level)
    return most / (4 * student_NK.numel()) - 1


def main() -> None:
    """Print the table, write the JSON."""
    torch.manual_seed(0)
    rows = []
    print("| | N | K | time, eager / mmkd | memory, eager | memory, mmkd |\n|---|---|---|---|---|---|")
    for count, classes in SIZES:
        for activation, eager in (("softmax", eager_softmax), ("sigmoid", eager_sigmoid)):
            if activation == "softmax" and classes == 1:
                continue
            student, teacher = torch.randn(count, classes, requires_grad=True), torch.randn(count, classes)
            times: dict[str, list[float]] = {"eager": [], "mmkd": []}
            losses = {"eager": eager, "mmkd": ours(activation)}
            for turn in range(9):
                for name, loss in losses.items():
                    start = time.perf_counter()
                    call(loss, student, teacher)
                    if turn >= 2:
                        times[name].append(time.perf_counter() - start)
            speed = statistics.median(times["eager"]) / statistics.median(times["mmkd"])
            memory = {name: peak(loss, student, teacher) for name, loss in losses.items()}
            rows.append(
                {"activation": activation, "N": count, "K": classes, "speed": speed, "memory": memory}
            )
            used = f"{memory['eager']:.1f} | {memory['mmkd']:.1f}"
            print(f"| {activation} | {count} | {classes} | {speed:.1f} | {used} |")
    about = {
        "versions": {
            "mmkd": mmkd.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads()},
        "rows": rows,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
