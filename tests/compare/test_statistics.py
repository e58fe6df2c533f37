from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mmkd.compare.statistics import gap_recovered, paired_difference, spread


def test_spread() -> None:
    found = spread([0.1, 0.2, 0.6])
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    assert found.std == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    one = spread([0.1])
    assert one is not None
    assert one.std is None
    assert spread([]) is None


def test_interval_is_that_of_the_paired_t_test() -> None:
    values, base = [0.45, 0.43, 0.48, 0.41], [0.40, 0.41, 0.42, 0.42]
    found = paired_difference(dict(enumerate(values)), dict(enumerate(base)))
    expected = ttest_rel(values, base).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.mean == pytest.approx(0.03)
    assert (found.pairs, found.positive) == (4, 3)


def test_pairs_are_of_common_seeds() -> None:
    found = paired_difference({0: 0.5, 1: 0.9}, {0: 0.4, 2: 0.0})
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert found.low is found.high is None
    assert paired_difference({1: 0.5}, {0: 0.4}) is None


def test_equal_differences_have_an_interval_of_one_point() -> None:
    found = paired_difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})
    assert found is not None
    assert (found.low, found.high) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("difference", "student", "teacher", "expected"),
    [(0.05, 0.4, 0.5, 0.5), (-0.05, 0.4, 0.5, -0.5), (0.05, 0.4, 0.4, None), (0.05, 0.4, 0.404, None)],
)
def test_gap(difference: float, student: float, teacher: float, expected: float | None) -> None:
    found = gap_recovered(difference, student, teacher)
    assert found == (None if expected is None else pytest.approx(expected))
