"""Statistics over a few seeds: mean and spread, paired difference, share of the gap."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import ttest_1samp

CONFIDENCE = 0.95
ROUNDING = 1e-12  # differences this close are equal; scipy has no interval for equal values
SMALLEST_GAP = 0.005  # mAP; with a smaller gap, the recovered share is noise divided by almost nothing


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation; the deviation is ``None`` for one value."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean difference over pairs, and its interval.

    Attributes:
        mean: mean difference.
        low: lower end of the interval; ``None`` for one pair.
        high: upper end of the interval; ``None`` for one pair.
        pairs: number of pairs.
        positive: number of differences above 0.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    positive: int


def spread(values: list[float]) -> Spread | None:
    """Mean and sample standard deviation; ``None`` without values."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def paired_difference(values: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Student's t interval of the differences, paired by seed.

    Args:
        values: seed → value.
        base: seed → value to subtract.

    Returns:
        ``None`` if they have no seed in common.
    """
    differences = [values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())]
    if not differences:
        return None
    mean, count = statistics.fmean(differences), len(differences)
    low = high = None
    if count > 1:
        low = high = mean
        if max(differences) - min(differences) > ROUNDING:
            low, high = map(float, ttest_1samp(differences, 0).confidence_interval(CONFIDENCE))
    return Difference(mean, low, high, count, sum(difference > 0 for difference in differences))


def gap_recovered(difference: float, student: float, teacher: float) -> float | None:
    """The share of the gap between the student alone and its teacher that distillation closes.

    Args:
        difference: mean gain over the student alone, over the same seeds as ``student``.
        student: mean mAP of the student alone.
        teacher: mAP of the teacher.

    Returns:
        ``None`` if the teacher is not better than the student by `SMALLEST_GAP`.
    """
    gap = teacher - student
    return difference / gap if gap >= SMALLEST_GAP else None
