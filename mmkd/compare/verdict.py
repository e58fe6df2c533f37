"""Predict from short trainings whether distillation pays off: figures, verdict and reasons."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmkd.compare.extrapolation import Forecast
from mmkd.compare.statistics import SMALLEST_GAP, Difference

PAYS, LOSES, UNDECIDED = "pays", "does not pay", "undecided"


@dataclass(frozen=True)
class Gain:
    """The predicted gain over the student alone at the full budget.

    Attributes:
        mean: the best estimate; ``None`` if the remaining gap is unknown.
        low: lower end; ``None`` if the short trainings have no interval.
        high: upper end; ``None`` if the short trainings have no interval.
    """

    mean: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """`LOSES` if the interval is below `SMALLEST_GAP`, `PAYS` if it is above 0, else `UNDECIDED`."""
        if self.low is None or self.high is None:
            return UNDECIDED
        return LOSES if self.high < SMALLEST_GAP else PAYS if self.low > 0 else UNDECIDED


def predict_gain(
    difference: Difference, student: float, forecast: Forecast | None, teacher: float | None
) -> Gain:
    """The gain at the full budget: the gain of the short trainings, scaled by the remaining gap.

    Assumes that distillation always closes the same share of the gap to the teacher. The gain then shrinks
    with the gap, and is 0 if the student alone will be as good as its teacher; gains beyond the teacher are
    not predicted. Low and high are the extremes that the intervals of difference and forecast allow together.

    Args:
        difference: gain over the student alone in the short trainings.
        student: mean metric of the student alone in the short trainings.
        forecast: forecast for the student alone at the full budget.
        teacher: the teacher's metric.

    Example:
        >>> gain = predict_gain(Difference(0.04, 0.03, 0.05, 3, 3), 0.4, Forecast(0.5, 0.45, 0.5), 0.6)
        >>> round(gain.mean, 3), round(gain.low, 3), round(gain.high, 4), gain.verdict
        (0.02, 0.015, 0.0375, 'pays')
    """

    def left(value: float) -> float:
        assert teacher is not None
        gap = teacher - student
        return float(np.clip((teacher - value) / gap, 0, 1)) if gap >= SMALLEST_GAP else 0.0

    if teacher is not None and teacher - student < SMALLEST_GAP:
        shares, mean = [0.0, 0.0], 0.0
    elif teacher is not None and forecast is not None:
        shares = [left(forecast.high), left(forecast.low)]
        mean = difference.mean * left(forecast.mean)
    else:
        shares, mean = [0.0, 1.0], None
    if difference.low is None or difference.high is None:
        return Gain(mean, None, None)
    ends = [end * share for end in (difference.low, difference.high) for share in shares]
    return Gain(mean, min(ends), max(ends))


def reasons(
    gain: Gain,
    difference: Difference,
    forecast: Forecast | None,
    why_no_forecast: str,
    teacher: float | None,
    cosines: Mapping[str, Sequence[float]],
    unknown_classes: Sequence[str],
) -> list[str]:
    """The reasons for the verdict, strongest first, one sentence each.

    Args:
        gain: predicted gain at the full budget.
        difference: gain over the student alone in the short trainings.
        forecast: forecast for the student alone.
        why_no_forecast: the reason if there is no forecast.
        teacher: the teacher's metric.
        cosines: term → for each seed, the cosine between the term's gradient and the task's.
        unknown_classes: classes on which the teacher is no better than the student alone.
    """
    found = []
    if difference.low is None:
        found.append("one seed gives no confidence interval: use at least two seeds")
    elif difference.low <= 0 <= (difference.high or 0):
        found.append("its gain over the student alone may be noise: use more seeds or a larger --share")
    elif difference.low > 0:
        found.append("it is significantly better than the student alone")
    else:
        found.append("it is significantly worse than the student alone")
    if teacher is None:
        found.append("no teacher AP to compare with")
    elif forecast is None:
        found.append(f"the student's AP at the full budget is unknown: {why_no_forecast}")
    else:
        expected = f"{forecast.mean:.3f} ({forecast.low:.3f} to {forecast.high:.3f})"
        by = (
            f"the student alone is predicted to reach {expected} with the full budget, the "
            f"teacher has {teacher:.3f}"
        )
        if teacher - forecast.low < SMALLEST_GAP:
            found.insert(
                0, f"the teacher is not better than the fully trained student: {by}; use a better teacher"
            )
        elif teacher - forecast.high < SMALLEST_GAP:
            found.append(f"the teacher may not be better than the fully trained student: {by}")
        else:
            found.append(f"the teacher stays ahead: {by}")
    for term, values in cosines.items():
        if values and max(values) < 0:
            mean = statistics.fmean(values)
            found.append(
                f"{term} conflicts with the task loss (mean cosine {mean:+.2f}, below 0 for every "
                "seed): lower its weight or remove it"
            )
    if unknown_classes:
        names = ", ".join(unknown_classes)
        found.append(f"the teacher is not better than the student on {names}: no gain expected there")
    return found


def page(probe: Mapping[str, Any]) -> str:
    """The verdicts as text for a terminal.

    Args:
        probe: the content of ``verdict.json``.
    """
    seeds = len(probe["seeds"])
    lines = [
        f"{probe['name']}: does it pay off? After {probe['share']:.1%} of the budget "
        f"({probe['iterations']} of {probe['whole_iterations']} iterations), {seeds} "
        f"seed{'s' if seeds > 1 else ''}",
        "",
    ]
    curve = ", ".join(f"{row['map_mean']:.3f} at {row['share']:.1%}" for row in probe["student"]["curve"])
    lines.append(f"student alone   {curve}")
    forecast = probe["student"]["forecast"]
    told = "not known" if forecast is None else f"{forecast['mean']:.3f} ({_ends(forecast)})"
    lines.append(f"                with the full budget: {told}")
    teacher = probe["teacher"]
    lines.append(f"teacher         {'none' if teacher is None else f'{teacher:.3f}'}")
    for variant in probe["variants"]:
        lines += ["", f"{variant['name']}: {variant['verdict'].upper()}"]
        now, then = variant["difference"], variant["predicted"]
        lines.append(f"  now           {now['mean']:+.3f} ({_ends(now, '+')})")
        best = "" if then["mean"] is None else f"{then['mean']:+.3f} "
        lines.append(f"  predicted     {best}({_ends(then, '+')}) with the full budget")
        lines += [f"  - {reason}" for reason in variant["reasons"]]
    lines += ["", _hours(probe["hours"])]
    lines += [f"failed: {line}" for line in probe["failed"]]
    return "\n".join(lines)


def _ends(of: Mapping[str, Any], sign: str = "") -> str:
    if of["low"] is None:
        return "no interval"
    return f"{of['low']:{sign}.3f} to {of['high']:{sign}.3f}"


def _hours(hours: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {value:.2g}" for name, value in hours["of_members"].items())
    whole = f"{hours['whole_plan']:.2g}"
    return (
        f"The full plan will take about {whole} hours here ({parts}); this probe took {hours['probe']:.2g}."
    )
