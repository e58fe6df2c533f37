"""Shared code of the benchmarks: timing in turns, memory, batches, and the JSON beside each table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch.profiler import ProfilerActivity, profile

OUT = Path("work_dirs/benchmarks")
Step = Callable[[], Any]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # two logits (N, K) to a scalar
WARM_UP = 2  # the first turns allocate memory


def take_turns(
    steps: Mapping[str, Step], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each step in each round, by a clock.

    The steps alternate, so that other load on the machine affects all of them, and each round starts with
    another step, so that none is always first.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + WARM_UP):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            steps[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= WARM_UP:
                times[name].append(clock() - start)
    return times


def paired_ratios(times: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """For each step, the median over the rounds of its ratio to ``base`` in the same round."""
    return {
        name: statistics.median(value / alone for value, alone in zip(values, times[base]))
        for name, values in times.items()
    }


def loss_step(loss: Loss, student_NK: torch.Tensor, teacher_NK: torch.Tensor) -> Step:
    """Forward and backward of a loss on logits."""

    def step() -> None:
        student_NK.grad = None
        loss(student_NK, teacher_NK).backward()

    return step


def _start(event: Any) -> int:
    """Start time of a profiler event; torch 2.1 uses microseconds."""
    return event.start_ns() if hasattr(event, "start_ns") else event.start_us()


def peak_bytes(step: Step, device: str = "cpu") -> int:
    """Peak memory allocated during a step, on top of what was allocated before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        step()
    level = most = 0
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=_start):
        level += event.nbytes()
        most = max(most, level)
    return most


def random_batch(images: int, height: int, width: int, num_classes: int, device: str = "cpu") -> Any:
    """Random inputs and samples with five boxes each."""
    torch.manual_seed(0)
    samples = []
    for index in range(images):
        shape = (height, width)
        meta = {"img_id": index, "img_shape": shape, "ori_shape": shape, "pad_shape": shape}
        sample = DetDataSample(metainfo={**meta, "batch_input_shape": shape, "scale_factor": (1.0, 1.0)})
        sides = torch.tensor([width, height])
        corner = torch.rand(5, 2) * sides * 0.5
        boxes = torch.cat([corner, corner + torch.rand(5, 2) * sides * 0.4 + 10], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(0, num_classes, (5,)))
        samples.append(sample.to(device))
    return torch.randn(images, 3, height, width, device=device), samples


def trained(model: Any, batch: Any, extra: Callable[[], torch.Tensor] | None = None) -> Step:
    """One step of a detector: loss, backward, SGD."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-6)

    def step() -> None:
        total, _ = model.parse_losses(model.loss(*batch))
        if extra is not None:
            total = total + extra()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def write(name: str, out: Path | None = None, **content: Any) -> None:
    """Write a benchmark's figures with the versions and hardware that produced them."""
    versions = {"python": platform.python_version()}
    for package in ("mmkd", "torch", "mmdet", "mmcv", "mmengine", "mmrazor", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    hardware = {
        "machine": platform.machine(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    out = out or OUT / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"versions": versions, "hardware": hardware, **content}, indent=2) + "\n")
    print(f"\nwritten: {out}")


def processor() -> str:
    """The processor's name, and the half-precision units that it reports."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    flags = {word for line in lines if line.startswith("flags") for word in line.split()}
    return ", ".join([name, *(sorted(flags & {"amx_bf16", "avx512_bf16"}) or ["no bfloat16"])])
