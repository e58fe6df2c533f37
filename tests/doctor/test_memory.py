from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mmkd.doctor import memory
from mmkd.doctor.findings import NotExamined
from mmkd.doctor.memory import StepMemory, count_saved, examine_memory, largest_layer

STEP = StepMemory(
    images=2,
    pixels=100,
    inputs=10,
    parameters=1000,
    gradients=1000,
    optimizer=2000,
    activations=80,
    teacher=500,
    teacher_layers=10,
)


def setup(step: StepMemory | None, batch_size: int = 8) -> Any:
    cfg = SimpleNamespace(train_dataloader={"batch_size": batch_size})
    return SimpleNamespace(step_memory=step, cfg=cfg, device="cpu")


def test_the_peak_grows_by_what_a_batch_brings() -> None:
    assert STEP.peak(2) == pytest.approx(1.25 * 4600)
    assert STEP.peak(8) - STEP.peak(2) == pytest.approx(1.25 * 3 * 100)


@pytest.mark.parametrize(
    ("free", "level", "told"), [(None, "ok", "unknown"), (10**6, "ok", "free"), (10, "warning", "free")]
)
def test_the_peak_against_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int | None, level: str, told: str
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    step, teacher, peak = examine_memory(setup(STEP))
    assert "of 2 images" in step.found
    assert f"{510 / 4600:.0%} of the whole" in teacher.found
    assert (peak.level, told in peak.found) == (level, True)


def test_without_a_step_nothing_is_said() -> None:
    with pytest.raises(NotExamined, match="no training step"):
        list(examine_memory(setup(None)))


def test_what_autograd_keeps_is_counted_once_and_without_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid())
    inputs = torch.ones(3, 4)
    with count_saved(model) as tally:
        model(inputs).sum().backward()
    assert tally.bytes == 4 * (3 * 4 + 3 * 8), "the input of the first layer, and the output of the second"


def test_the_largest_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    with largest_layer(model) as tally:
        model(torch.ones(3, 4))
    assert tally.bytes == 4 * 3 * (4 + 8)
    model(torch.ones(300, 4))
    assert tally.bytes == 4 * 3 * (4 + 8), "it looks no longer"
