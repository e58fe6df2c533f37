from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper

from mmkd.amp import use_amp

from .conftest import batch, build, tiny_atss


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", {"type": "BFloat16OptimWrapper"}),
        ("cuda", {"type": "AmpOptimWrapper", "loss_scale": "dynamic"}),
    ],
)
def test_wrapper_for_the_device(device: str, expected: dict[str, str]) -> None:
    cfg = ConfigDict(type="OptimWrapper", optimizer={"type": "SGD", "lr": 0.1})
    use_amp(cfg, device)
    assert cfg == {**expected, "optimizer": {"type": "SGD", "lr": 0.1}}


def test_forward_in_bfloat16_and_the_rest_in_float32() -> None:
    model = build(tiny_atss())
    cfg = {"type": "BFloat16OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2}
    optim_wrapper = build_optim_wrapper(model, cfg)
    seen = []
    model.neck.register_forward_hook(lambda *call: seen.append(call[-1][0].dtype))
    before = copy.deepcopy(model.state_dict())
    optim_wrapper.initialize_count_status(model, 0, 4)
    for step in range(2):
        logs = model.train_step(copy.deepcopy(batch()), optim_wrapper)
        assert all(value.dtype == torch.float32 for value in logs.values())
        changed = not torch.equal(before["neck.fpn_convs.0.conv.weight"], model.neck.fpn_convs[0].conv.weight)
        assert changed == (step == 1), "accumulative_counts holds"
    assert seen == [torch.bfloat16] * 2
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")
