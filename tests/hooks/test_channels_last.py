from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmkd.hooks import ChannelsLastHook

from ..conftest import build, save_teacher, tiny_atss, tiny_teacher
from .kd_runner import kd_model, kd_runner, logged


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [
        layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]


def test_trains_the_same_up_to_rounding_in_the_other_format(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    for name, hooks in (("usual", []), ("last", [ChannelsLastHook()])):
        runner = kd_runner(tmp_path / name, kd_model(teacher), *hooks, epochs=1)
        runner.train()
        layers = convolutions(runner.model)
        assert layers
        assert all(layer.weight.is_contiguous() != bool(hooks) for layer in layers)
    usual, last = (logged(tmp_path / name) for name in ("usual", "last"))
    assert [step["loss"] for step in last] == pytest.approx([step["loss"] for step in usual], rel=1e-3)

    student = build(tiny_atss())
    student.load_state_dict(torch.load(tmp_path / "last/epoch_1.pth", weights_only=False)["state_dict"])
    assert all(layer.weight.is_contiguous() for layer in convolutions(student))


def test_layers_that_know_one_format_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.hooks.channels_last.misreads_channels_last", lambda _: True)
    warned: list[str] = []
    runner = kd_runner(tmp_path / "run", build(tiny_atss()), ChannelsLastHook(), epochs=1)
    monkeypatch.setattr(runner.logger, "warning", warned.append)
    ChannelsLastHook().before_train(runner)
    assert len(warned) == 1
    assert all(layer.weight.is_contiguous() for layer in convolutions(runner.model))
