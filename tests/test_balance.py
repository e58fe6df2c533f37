from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmkd.balance import compare_gradients, measure_balance, recorded_calls, suggested_weight

from .conftest import batch, losses_of
from .hooks.kd_runner import kd_model


def test_a_weight_scales_the_ratio_and_not_the_direction() -> None:
    found = []
    for weight in (1.0, 3.0):
        model = kd_model(None, distill={"cls": {"type": "DistillationLoss", "loss_weight": weight}})
        with recorded_calls(model.terms) as calls:
            losses = losses_of(model, batch())
        found.append(measure_balance(losses, calls, ["cls"]))
    one, three = found
    assert one is not None
    assert three is not None
    assert three.ratios["cls"] == pytest.approx(3 * one.ratios["cls"], rel=1e-4)
    assert three.cosines["cls"] == pytest.approx(one.cosines["cls"], abs=1e-4)
    suggested, enough = suggested_weight(1.0, one.ratios["cls"])
    assert enough
    assert suggested * one.ratios["cls"] == pytest.approx(1)


def test_watches_no_longer() -> None:
    model = kd_model(None)
    with recorded_calls(model.terms) as calls:
        pass
    losses_of(model, batch())
    assert calls == {}


def test_frozen_features_have_no_balance() -> None:
    level: Any = SimpleNamespace(requires_grad=False)
    assert compare_gradients(torch.zeros(()), {"cls": torch.zeros(())}, [level]) is None


@pytest.mark.parametrize(
    ("ratio", "weight", "enough"),
    [(0.5, 4.0, True), (0.0, 2000.0, False), (1e-9, 2000.0, False), (1e9, 0.002, False)],
)
def test_suggested_weight(ratio: float, weight: float, enough: bool) -> None:
    suggested, found = suggested_weight(2.0, ratio)
    assert math.isclose(suggested, weight)
    assert found is enough
