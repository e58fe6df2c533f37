from __future__ import annotations

import math
from typing import Any

import pytest

from mmkd.errors import UserError
from mmkd.losses import AutoWeight, registered_losses, split_shares


def measured(*ratios: float, share: float = 0.1) -> AutoWeight:
    auto = AutoWeight(share)
    for ratio in ratios:
        auto.observe(ratio)
    return auto


def test_the_first_measurement_counts_whole() -> None:
    assert AutoWeight(0.1).weight == 0
    assert measured(20.0).weight == pytest.approx(0.005)
    assert measured(20.0, share=0.4).weight == pytest.approx(0.02)


def test_a_running_mean_of_logarithms() -> None:
    masses = [0.25, 0.5, 1]
    mean = sum(mass * math.log(ratio) for mass, ratio in zip(masses, (2, 3, 4))) / sum(masses)
    assert measured(2, 3, 4).weight == pytest.approx(0.1 / math.exp(mean))


def test_it_falls_at_once_and_rises_slowly() -> None:
    assert measured(1, 50).weight == pytest.approx(0.1 / 50)
    assert measured(1, 1e-5).weight == measured(1, 0.25).weight
    assert measured(*[1] * 30, 1e-5).weight == pytest.approx(0.2, rel=1e-3)


def test_no_gradient_is_no_measurement() -> None:
    auto = measured(0.0, 1e-9)
    assert (auto.weight, auto.silent) == (0, 2)
    auto.observe(2.0)
    assert (auto.weight, auto.silent) == (pytest.approx(0.05), 0)
    before = auto.weight
    auto.observe(0.0)
    assert auto.weight == before


def test_when_it_is_measured() -> None:
    auto, due = measured(1.0), []
    for auto.done in range(160):
        due += [auto.done] if auto.due else []
    assert due == [0, 1, 2, 4, 8, 16, 32, 50, 100, 150]
    unmeasured = AutoWeight(0.1)
    unmeasured.done = 77
    assert unmeasured.due


def test_its_state() -> None:
    auto, other = measured(3.0, 0.0), AutoWeight(0.1)
    auto.done = 7
    other.load_state_dict(auto.state_dict())
    for ratio in (0.3, 5.0):
        auto.observe(ratio)
        other.observe(ratio)
    assert vars(other).keys() == vars(auto).keys()
    assert (other.weight, other.done, other.silent) == (auto.weight, 7, 0)
    assert not list(auto.parameters())
    assert not list(auto.buffers())


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({"loss_weight": "auto"}, 4.0),
        ({"loss_weight": "auto", "share": 0.2}, 0.2),
        ({"share": 2}, 2.0),
        ({"loss_weight": 3.0}, None),
        ({}, None),
    ],
)
def test_spelling(given: dict[str, Any], share: float | None) -> None:
    losses, shares = split_shares({"x": {"type": "PKDLoss", **given}})
    assert shares == ({} if share is None else {"x": share})
    expected = given if share is None else {"loss_weight": 1.0}
    assert losses == {"x": {"type": "PKDLoss", **expected}}


@pytest.mark.parametrize("kind", registered_losses())
def test_the_share_of_each_group(kind: str) -> None:
    large = {"CosineLoss", "CrossKDLoss", "CWDLoss", "FGDLoss", "FitNetsLoss", "PGDLoss", "PKDLoss"}
    share = 4.0 if kind in large else 0.5
    assert split_shares({"x": {"type": kind, "loss_weight": "auto"}})[1] == {"x": share}


@pytest.mark.parametrize("kind", registered_losses())
def test_without_a_weight(kind: str) -> None:
    of_large_images = {"FGDLoss": 4.0, "MGDLoss": 0.5, "PGDLoss": 4.0}
    expected = {"x": of_large_images[kind]} if kind in of_large_images else {}
    assert split_shares({"x": {"type": kind}})[1] == expected
    assert split_shares({"x": {"type": kind, "loss_weight": 1.0}})[1] == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_weight": "Auto"}, r"(?s)x: invalid loss_weight.*'auto'.*'Auto'"),
        (
            {"loss_weight": 0.5, "share": 0.1},
            r"(?s)both a fixed loss_weight and a share.*loss_weight=0.5, share=0.1",
        ),
        ({"loss_weight": 0, "share": 0.1}, "both a fixed loss_weight and a share"),
        ({"share": 0}, r"(?s)x: invalid share.*above 0"),
        ({"share": "0.1"}, r"x: invalid share"),
        ({"share": True}, r"x: invalid share"),
        ({"share": math.inf}, r"x: invalid share"),
    ],
)
def test_wrong_values(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_shares({"x": {"type": "PKDLoss", **given}})


def test_what_is_no_config_is_left_to_others() -> None:
    assert split_shares(None) == (None, {})
    assert split_shares({"x": 3}) == ({"x": 3}, {})
