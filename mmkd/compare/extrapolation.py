"""Predict a student's metric at the full budget: a power law fitted to shorter trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as fisher_f

from mmkd.compare.statistics import CONFIDENCE

Floats = NDArray[np.float64]
EXPONENTS = np.geomspace(0.05, 4.0, 90)
LEAST_BUDGETS = 3
LEAST_VALUE = 0.02  # below it, the detector is not on its curve yet


@dataclass(frozen=True)
class Forecast:
    """A metric predicted for the full budget.

    Attributes:
        mean: the best fit's value.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    mean: float
    low: float
    high: float


def extrapolate(points: Sequence[tuple[float, float]]) -> tuple[Forecast | None, str]:
    r"""Fit :math:`y = a - k\,b^{-c}`, k ≥ 0, to a metric over budgets, and evaluate it at b = 1.

    The interval comes from the profile likelihood: all values at b = 1 that an F test does not reject for
    some exponent c in [0.05, 4]. The further the budgets are from 1, the wider it gets.

    Args:
        points: (budget in (0, 1], metric in [0, 1]) of each training, with several trainings per budget.

    Returns:
        The forecast and an empty text, or ``None`` and the reason.

    Example:
        >>> law = lambda b: 0.6 - 0.1 * b**-0.5
        >>> found, _ = extrapolate([(b, law(b) + e) for b in (0.05, 0.1, 0.2) for e in (-0.001, 0.001)])
        >>> round(found.mean, 2)
        0.5
    """
    budgets, values = np.array(points, float).reshape(-1, 2).T
    known = [budget for budget in set(budgets) if values[budgets == budget].mean() >= LEAST_VALUE]
    if len(known) < LEAST_BUDGETS:
        return None, (
            f"its learning curve has {len(known)} of the {LEAST_BUDGETS} points needed at or "
            f"above {LEAST_VALUE}"
        )
    budgets, values = budgets[np.isin(budgets, known)], values[np.isin(budgets, known)]
    free = len(values) - LEAST_BUDGETS
    if free < 1:
        return None, "with one seed, the spread of its learning curve is unknown"
    fits = np.array([_fit(budgets, values, c) for c in EXPONENTS])  # value at 1, its variance factor, error
    best = int(fits[:, 2].argmin())
    limit = fits[best, 2] * (1 + float(fisher_f.ppf(CONFIDENCE, 1, free)) / free)
    rises = float(values.var() * len(values)) > limit
    if best == 0 and rises:
        return None, "its learning curve has not started to flatten"
    likely = fits[fits[:, 2] <= limit]
    half = np.sqrt((limit - likely[:, 2]) * likely[:, 1])
    low, high = (likely[:, 0] - half).min(), (likely[:, 0] + half).max()
    if rises and fits[0, 2] <= limit:  # it may not flatten yet, so the upper end is unknown
        high = 1.0
    return Forecast(*(float(np.clip(value, 0, 1)) for value in (fits[best, 0], low, high))), ""


def _fit(budgets: Floats, values: Floats, exponent: float) -> tuple[float, float, float]:
    """Least squares: the value at 1, its variance over the noise's, and the sum of squared errors."""
    growth = budgets**-exponent - 1
    design = np.stack([np.ones_like(growth), -growth], 1)
    (value, slope), *_ = np.linalg.lstsq(design, values, rcond=None)
    if slope < 0:  # a metric that falls with training is taken as noise
        design, value, slope = design[:, :1], values.mean(), 0.0
    errors = values - value + slope * growth
    return float(value), float(np.linalg.inv(design.T @ design)[0, 0]), float((errors**2).sum())
