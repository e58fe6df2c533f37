from __future__ import annotations

from typing import Any

import pytest

from mmkd.errors import UserError
from mmkd.sweeps import Hyperband


@pytest.mark.parametrize(
    ("config", "bands"),
    [
        ({"max_iter": 27, "s": 2}, (3, 9)),
        ({"max_iter": 5, "eta": 2, "s": 2}, (1, 2)),
        ({"min_iter": 3, "eta": 2}, (3, 6, 12)),
        ({"min_iter": 8, "eta": 2, "s": 3, "strict": False}, (8, 16, 32)),
    ],
)
def test_bands(config: dict[str, Any], bands: tuple[int, ...]) -> None:
    assert Hyperband.from_config({"type": "hyperband", **config}, maximize=True).bands[: len(bands)] == bands


# From the documentation of W&B's own function: five runs that minimise a loss.
RUNS = {"a": [10, 9], "b": [10, 10], "c": [10, 8, 8], "d": [10, 7, 7], "e": [10, 6, 6]}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("name", "stops"), [("b", True), ("c", True), ("d", False)])
def test_documented_example(name: str, stops: bool, sign: int) -> None:
    rule = Hyperband((1, 2), eta=2, maximize=sign < 0)
    runs = {key: [sign * value for value in values] for key, values in RUNS.items()}
    own = runs.pop(name)
    assert rule.should_stop(own, list(runs.values())) is stops


def test_no_band_reached() -> None:
    assert not Hyperband((2,), 2, True).should_stop([0.0, 0.0], [[1.0] * 5] * 5)


def test_the_first_run_is_never_stopped() -> None:
    assert not Hyperband((1,), 2, True).should_stop([0.0, 0.0, 0.0], [])


@pytest.mark.parametrize(
    "config",
    [
        {"type": "envelope", "min_iter": 1},
        {"type": "hyperband"},
        {"type": "hyperband", "min_iter": 1, "eta": 1},
    ],
)
def test_not_understood(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="early_terminate"):
        Hyperband.from_config(config, True)
