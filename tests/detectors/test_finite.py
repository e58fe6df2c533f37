from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from mmkd.detectors.finite import TOLERATED, FiniteCheck, in_float16
from mmkd.errors import UserError

NAN, FINE = float("nan"), 1.0


def look(check: FiniteCheck, value: float) -> None:
    loss = torch.tensor(value)
    check(loss + 2, {"loss": loss + 2, "loss_cls": torch.tensor(2.0), "loss_kd_cls": loss})


def scaler(enabled: bool) -> SimpleNamespace:
    return SimpleNamespace(loss_scaler=SimpleNamespace(is_enabled=lambda: enabled))


@pytest.mark.parametrize("optim_wrapper", [SimpleNamespace(), scaler(enabled=False)])
def test_stops_at_once_where_no_scaler_leaves_the_step_out(optim_wrapper: SimpleNamespace) -> None:
    check = FiniteCheck()
    check.look_at(optim_wrapper)
    look(check, FINE)
    MessageHub.get_current_instance().update_info("iter", 6)
    with pytest.raises(UserError, match=r"loss_kd_cls is not finite at iteration 7\.[\s\S]*loss_cls 2"):
        look(check, NAN)


def test_a_few_in_a_row_pass_under_a_scaler() -> None:
    check = FiniteCheck()
    check.look_at(scaler(enabled=True))
    for value in ([NAN] * TOLERATED + [FINE]) * 2:
        look(check, value)
    for _ in range(TOLERATED):
        look(check, float("inf"))
    with pytest.raises(UserError, match=rf"in {TOLERATED + 1} consecutive steps[\s\S]*without --amp"):
        look(check, float("inf"))


def test_a_sum_that_overflows() -> None:
    check, huge = FiniteCheck(), torch.tensor(3e38)
    with pytest.raises(UserError, match="the sum of the losses is not finite"):
        check(huge + huge, {"loss": huge + huge, "loss_a": huge, "loss_b": huge})


def test_float16_is_told_from_other_precisions() -> None:
    cpu = torch.device("cpu")
    assert not in_float16(cpu)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not in_float16(cpu)
    if hasattr(torch, "get_autocast_dtype"):
        with torch.autocast("cpu", dtype=torch.float16):
            assert in_float16(cpu)
