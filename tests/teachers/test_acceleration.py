from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.teachers.acceleration import choose_dtype, fold_batch_norm


@pytest.mark.parametrize(
    ("device", "hardware", "dtype", "reason"),
    [
        ("cpu", {"_is_amx_tile_supported": True}, torch.bfloat16, "AMX"),
        ("cpu", {"_is_avx512_bf16_supported": True}, torch.bfloat16, "AVX512-BF16"),
        ("cpu", {}, torch.float32, "without"),
        ("cuda", (8, 0), torch.bfloat16, "8.0"),
        ("cuda", (7, 5), torch.float16, "does not support bfloat16"),
        ("mps", {}, torch.float32, "mps"),
    ],
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch, device: str, hardware: Any, dtype: torch.dtype, reason: str
) -> None:
    for feature in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        has = isinstance(hardware, dict) and hardware.get(feature, False)
        monkeypatch.setattr(torch.cpu, feature, lambda has=has: has, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: hardware)
    found, why = choose_dtype("auto", torch.device(device))
    assert found == dtype
    assert reason in why


def test_asked_for() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("fp32", cpu)[0] == torch.float32
    assert choose_dtype("bf16", cpu)[0] == torch.bfloat16
    assert choose_dtype("fp16", torch.device("cuda"))[0] == torch.float16
    with pytest.raises(UserError, match="float16 on CPU"):
        choose_dtype("fp16", cpu)


class InOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class OutOfOrder(nn.Module):
    """Declares its BatchNorm after a convolution that it does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


def prepared(model: nn.Module) -> tuple[nn.Module, Callable[[], list[Tensor]]]:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.rand(4)
            layer.running_var = torch.rand(4) + 0.5
    x = torch.randn(2, 3, 8, 8)
    return model.eval(), lambda: [model(x)]


@pytest.mark.parametrize(("kind", "folds"), [(InOrder, True), (OutOfOrder, False)])
def test_folding_keeps_the_outputs(kind: type[nn.Module], folds: bool) -> None:
    model, run = prepared(kind())
    with torch.no_grad():
        before = run()[0]
        assert fold_batch_norm(model, run) == folds
        torch.testing.assert_close(run()[0], before, rtol=1e-5, atol=1e-5)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == (0 if folds else 1)


class WithUnread(nn.Module):
    """A part that folds wrongly and is not run by the example."""

    def __init__(self) -> None:
        super().__init__()
        self.run, self.unread = InOrder(), OutOfOrder()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def test_what_the_example_does_not_run_is_not_folded() -> None:
    model, run = prepared(WithUnread())
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before = model.unread(image)
        assert fold_batch_norm(model, run)
        assert torch.equal(model.unread(image), before)
    assert [name for name, x in model.named_modules() if isinstance(x, nn.BatchNorm2d)] == ["unread.norm"]


def test_layers_that_cannot_be_folded_stay() -> None:
    """mmcv goes by the order of declaration; here the widths differ."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)))
    odd = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.BatchNorm2d(6)).eval()
    odd.forward = lambda x: odd[2](model[1][0](odd[0](x)))  # type: ignore[method-assign]
    image = torch.rand(1, 3, 4, 4)
    before = odd.forward(image)
    assert not fold_batch_norm(odd, lambda: [odd.forward(image)])
    torch.testing.assert_close(odd.forward(image), before)


def test_nothing_to_fold() -> None:
    assert not fold_batch_norm(nn.Sequential(nn.Conv2d(1, 1, 1)), list)
