from __future__ import annotations

from typing import Any

import pytest

from mmkd.compare.extrapolation import Forecast
from mmkd.compare.statistics import Difference
from mmkd.compare.verdict import LOSES, PAYS, UNDECIDED, page, predict_gain, reasons

CLEAR = Difference(0.04, 0.03, 0.05, 3, 3)
SURE = Forecast(0.45, 0.44, 0.46)


@pytest.mark.parametrize(
    ("difference", "forecast", "teacher", "verdict"),
    [
        (CLEAR, SURE, 0.6, PAYS),
        (CLEAR, SURE, 0.43, LOSES),  # the student passes its teacher
        (CLEAR, SURE, 0.40, LOSES),  # it has, by now
        (CLEAR, Forecast(0.449, 0.449, 0.449), 0.45, LOSES),  # all but 0.001 of the gap closes by itself
        (CLEAR, Forecast(0.45, 0.42, 0.70), 0.6, UNDECIDED),
        (CLEAR, None, 0.6, UNDECIDED),
        (CLEAR, SURE, None, UNDECIDED),
        (Difference(0.04, -0.01, 0.09, 3, 2), SURE, 0.6, UNDECIDED),
        (Difference(-0.04, -0.05, -0.03, 3, 0), SURE, 0.6, LOSES),
        (Difference(-0.04, -0.05, -0.03, 3, 0), None, None, LOSES),
        (Difference(0.04, None, None, 1, 1), SURE, 0.6, UNDECIDED),
    ],
)
def test_verdict(
    difference: Difference, forecast: Forecast | None, teacher: float | None, verdict: str
) -> None:
    assert predict_gain(difference, 0.4, forecast, teacher).verdict == verdict


def test_the_gain_shrinks_with_the_gap() -> None:
    gain = predict_gain(CLEAR, 0.4, SURE, 0.5)
    assert gain.mean == pytest.approx(0.02)
    assert (gain.low, gain.high) == (pytest.approx(0.03 * 0.4), pytest.approx(0.05 * 0.6))


def told(**changed: Any) -> list[str]:
    given: dict[str, Any] = {
        "difference": CLEAR,
        "forecast": SURE,
        "why_no_forecast": "",
        "teacher": 0.6,
        "cosines": {},
        "unknown_classes": [],
        **changed,
    }
    gain = predict_gain(given["difference"], 0.4, given["forecast"], given["teacher"])
    return reasons(gain, **given)


def test_reasons() -> None:
    assert told() == [
        "it is significantly better than the student alone",
        "the teacher stays ahead: the student alone is predicted to reach 0.450 (0.440 to "
        "0.460) with the full budget, the teacher has 0.600",
    ]
    assert told(teacher=0.43)[0].startswith("the teacher is not better than the fully trained student: ")
    assert "may not be better" in told(teacher=0.455)[1]
    assert told(forecast=None, why_no_forecast="too short")[1].endswith("is unknown: too short")
    assert "no teacher AP" in told(teacher=None)[1]
    assert "may be noise" in told(difference=Difference(0.04, -0.01, 0.09, 3, 2))[0]
    assert "worse than" in told(difference=Difference(-0.04, -0.05, -0.03, 3, 0))[0]
    assert "at least two seeds" in told(difference=Difference(0.04, None, None, 1, 1))[0]


def test_a_term_that_pulls_against_the_task() -> None:
    (against,) = told(cosines={"cls": [-0.2, -0.1], "box": [-0.2, 0.1], "neck": []})[2:]
    assert against.startswith("cls conflicts with the task loss (mean cosine -0.15")
    assert "RBC, WBC" in told(unknown_classes=["RBC", "WBC"])[-1]


def test_page() -> None:
    variant = {
        "name": "kd",
        "verdict": PAYS,
        "difference": {"mean": 0.04, "low": 0.03, "high": 0.05},
        "predicted": {"mean": None, "low": None, "high": None},
        "reasons": ["it is so"],
    }
    text = page(
        {
            "name": "blood",
            "share": 0.1,
            "iterations": 30,
            "whole_iterations": 300,
            "seeds": [0],
            "student": {"curve": [{"share": 0.1, "map_mean": 0.4}], "forecast": None},
            "teacher": 0.55,
            "variants": [variant],
            "hours": {"whole_plan": 2.5, "of_members": {"student": 1, "kd": 1.5}, "probe": 0.25},
            "failed": ["student, seed 1: no memory"],
        }
    )
    assert text.splitlines() == [
        "blood: does it pay off? After 10.0% of the budget (30 of 300 iterations), 1 seed",
        "",
        "student alone   0.400 at 10.0%",
        "                with the full budget: not known",
        "teacher         0.550",
        "",
        "kd: PAYS",
        "  now           +0.040 (+0.030 to +0.050)",
        "  predicted     (no interval) with the full budget",
        "  - it is so",
        "",
        "The full plan will take about 2.5 hours here (student 1, kd 1.5); this probe took 0.25.",
        "failed: student, seed 1: no memory",
    ]
