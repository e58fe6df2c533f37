from __future__ import annotations

import numpy as np
import pytest

from mmkd.compare.extrapolation import extrapolate


def noisy(
    budgets: tuple[float, ...], exponent: float, seed: int, seeds: int = 3, noise: float = 0.008
) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    return [(b, 0.6 - 0.05 * b**-exponent + rng.normal(0, noise)) for b in budgets for _ in range(seeds)]


@pytest.mark.parametrize("exponent", [0.3, 0.5, 0.8])
def test_interval_holds_the_truth_as_often_as_it_says(exponent: float) -> None:
    found = [extrapolate(noisy((0.1, 0.2, 0.4), exponent, seed))[0] for seed in range(60)]
    known = [one for one in found if one is not None]
    assert len(known) > 10
    held = sum(one.low <= 0.55 <= one.high for one in known)
    assert held >= 0.9 * len(known)


def test_it_widens_with_the_distance() -> None:
    widths = []
    for last in (0.1, 0.4):
        budgets = (last / 4, last / 2, last)
        # The same heights at the three budgets.
        found, _ = extrapolate(
            [(b, 0.6 - 0.1 * (b / last) ** -1.0 + e) for b in budgets for e in (-0.004, 0.004)]
        )
        assert found is not None
        assert found.low <= found.mean <= found.high
        assert found.mean == pytest.approx(0.6 - 0.1 * last, abs=0.01)
        widths.append(found.high - found.low)
    assert widths[0] > widths[1]


def test_a_plateau() -> None:
    found, _ = extrapolate([(b, 0.5 + e) for b in (0.1, 0.2, 0.4) for e in (-0.01, 0, 0.01)])
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.high < 0.55


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([(0.1, 0.2), (0.2, 0.3), (0.2, 0.31), (0.1, 0.21)], "2 of the 3 points"),
        ([(0.1, 0.2), (0.2, 0.3), (0.4, 0.35)], "one seed"),
        ([(b, b + e) for b in (0.1, 0.2, 0.4) for e in (0, 0.001)], "not started to flatten"),
        ([], "0 of the"),
        (
            [(b, ap + e) for b, ap in ((0.1, 0.01), (0.2, 0.2), (0.4, 0.3)) for e in (0, 0.001)],
            "2 of the",
        ),
    ],
)
def test_it_says_why_it_cannot(points: list[tuple[float, float]], why: str) -> None:
    found, said = extrapolate(points)
    assert found is None
    assert why in said
