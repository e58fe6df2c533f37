"""Same seed, same numbers."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import set_random_seed

from .conftest import ROOT, batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher
from .distributed import LD, TERMS, gfl, some_images

# Masks are drawn anew in each step.
ALL = {**TERMS, "masked": {"type": "MGDLoss"}, "masked_conv": {"type": "MGDLoss", "align": "conv"}}


def train(checkpoint: str, out: str, workers: int) -> None:
    """An epoch of a student with all losses, in deterministic algorithms; for a process of its own."""
    from mmengine.registry import init_default_scope

    from .hooks.kd_runner import kd_runner

    init_default_scope("mmdet")
    folder = Path(out).with_suffix("")
    folder.mkdir()
    images = batch(*[(64, 64)] * 6)
    # All that is drawn is drawn by the seed of the config.
    runner = kd_runner(
        folder,
        distilled(tiny_atss(), tiny_teacher(), checkpoint, distill=ALL),
        epochs=1,
        train_dataloader={
            "batch_size": 2,
            "dataset": [{key: value[index] for key, value in images.items()} for index in range(6)],
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "collate_fn": {"type": "pseudo_collate"},
            "num_workers": workers,
        },
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-5}},
        randomness={"seed": 0, "deterministic": True},
    )
    first = {name: value.clone() for name, value in runner.model.distill.state_dict().items()}
    runner.train()
    torch.save([first, runner.model.state_dict(), runner.model.distill.state_dict()], out)


@pytest.fixture
def _deterministic() -> Any:
    set_random_seed(0, deterministic=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.slow
@pytest.mark.usefixtures("_deterministic")
def test_same_seed_same_weights(tmp_path: Path) -> None:
    """In two processes with sets in another order, without workers and with two: bit for bit.

    The student, and the layers of its losses.
    """
    checkpoint = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    call = f"train({checkpoint!r}, {str(tmp_path / '2.pth')!r}, 2)"
    other = subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_determinism import train; {call}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    train(checkpoint, str(tmp_path / "0.pth"), 0)
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors[-3000:]
    one, two = (torch.load(tmp_path / f"{workers}.pth") for workers in (0, 2))
    for found, wanted in zip(one, two, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    begun, _, ended = one
    assert any(not torch.equal(begun[name], ended[name]) for name in begun)


def test_layers_of_losses_begin_by_the_seed() -> None:
    cfg = distilled(tiny_atss(), tiny_teacher(), distill=ALL)
    first, again, other = (build(cfg, seed).distill.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if name.startswith("masked_conv") and name.endswith("weight")]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("heads", ["atss", "gfl"])
def test_deterministic_algorithms_have_all_that_losses_need(heads: str) -> None:
    """`randomness=dict(deterministic=True)`: the same gradients twice, bit for bit."""
    terms = LD if heads == "gfl" else ALL
    as_head = gfl if heads == "gfl" else copy.copy
    model = build(distilled(as_head(tiny_atss()), as_head(tiny_teacher()), distill=terms))
    gradients = []
    for _ in range(2):
        set_random_seed(0, deterministic=True)
        model.zero_grad()
        total, _ = model.parse_losses(losses_of(model.eval(), some_images(range(4))))
        total.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())
