from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config

from mmkd.compare import measure as module
from mmkd.compare.measure import measure
from mmkd.compare.run_configs import evaluation_config
from mmkd.registry import MODELS

from ..conftest import save_teacher, tiny_atss, tiny_teacher
from ..detectors.test_kd_detector import transformer, two_stage


def test_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 2)
    data = Config.fromfile("configs/bccd/student.py")
    members = {}
    for name, model in (("small", tiny_atss()), ("large", tiny_teacher())):
        checkpoint = save_teacher(tmp_path / f"{name}.pth", model)
        members[name] = (evaluation_config(Config({"model": model}), data, "test"), checkpoint)
    found = measure(members)
    model = MODELS.build(tiny_atss())
    assert found["small"].parameters == sum(p.numel() for p in model.parameters())
    assert found["large"].parameters > found["small"].parameters
    assert (found["large"].flops or 0) > (found["small"].flops or 0) > 0
    assert found["small"].size == (256, 320), "240 rows, padded to the size divisor"
    assert found["small"].latency > 0


@pytest.mark.parametrize("build", [two_stage, transformer])
def test_flops_of_heads_that_ask_for_the_samples(build: Any) -> None:
    model = MODELS.build(build())
    model.eval()
    inputs = torch.zeros(1, 3, 64, 96)
    sample = DetDataSample(metainfo={"img_shape": (64, 96), "batch_input_shape": (64, 96)})
    found = module._flops(model, {"inputs": inputs, "data_samples": [sample]})
    assert found
    assert "forward" not in vars(model)


def test_flops_that_cannot_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"inputs": torch.zeros(1, 3, 8, 8), "data_samples": []}
    assert module._flops(torch.nn.Bilinear(1, 1, 1), data) is None
    assert "cannot count the FLOPs of Bilinear" in capsys.readouterr().out
