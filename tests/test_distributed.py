"""One process with the whole batch and two with half of it give the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher

SHAPES = [(64, 96), (96, 64), (96, 96), (64, 64)]
TERMS = {
    f"{region}_{normalizer}": {"type": "DistillationLoss", "region": region, "normalizer": normalizer}
    for region in ("all", "foreground", "teacher")
    for normalizer in ("region", "priors", "batch")
}


def losses_and_gradient(checkpoint: str, images: slice) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The distillation losses of some of the images, and their gradient on the neck."""
    model = build(distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=TERMS)).eval()
    data = batch(*SHAPES)
    data = {key: value[images] for key, value in data.items()}
    losses = {key: value for key, value in losses_of(model, data).items() if "kd" in key}
    sum(losses.values()).backward()
    gradient = model.neck.lateral_convs[0].conv.weight.grad
    return {key: value.detach() for key, value in losses.items()}, gradient


def worker(checkpoint: str, out: str) -> None:
    from mmengine.dist import all_reduce, get_rank
    from mmengine.registry import init_default_scope

    torch.distributed.init_process_group("gloo")
    init_default_scope("mmdet")
    half = slice(0, 2) if get_rank() == 0 else slice(2, 4)
    losses, gradient = losses_and_gradient(checkpoint, half)
    for value in [*losses.values(), gradient]:  # what DistributedDataParallel does with gradients
        all_reduce(value, op="mean")
    if get_rank() == 0:
        torch.save({"losses": losses, "gradient": gradient}, out)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    checkpoint = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    out = tmp_path / "two.pth"
    code = f"from tests.test_distributed import worker; worker({checkpoint!r}, {str(out)!r})"
    script = tmp_path / "worker.py"
    script.write_text(code)
    port = 20000 + os.getpid() % 20000
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={port}",
        str(script),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(out)
    losses, gradient = losses_and_gradient(checkpoint, slice(0, 4))
    assert losses.keys() == two["losses"].keys()
    for key, value in losses.items():
        assert value > 0
        assert two["losses"][key] == pytest.approx(float(value), rel=1e-5), key
    torch.testing.assert_close(two["gradient"], gradient, rtol=1e-4, atol=1e-6)
