from __future__ import annotations

import json
from typing import Any

import pytest

from mmkd.compare.measure import Cost
from mmkd.compare.records import Record
from mmkd.compare.results import class_values, results, values_of
from mmkd.compare.tables import RUN_KEYS, SUMMARY_KEYS

from .fabricated import coco, plan


def record(member: str, seed: int | None, value: float | None, **values: Any) -> Record:
    metrics = {} if value is None else coco(value)
    found = Record(member, seed, f"{member}.py", "abc", trained=True, evaluated="def", metrics=metrics)
    for key, each in values.items():
        setattr(found, key, each)
    return found


RECORDS = [
    record("teacher", None, 0.5),
    record("student", 0, 0.4),
    record("student", 1, 0.38),
    record("boxes", 0, 0.45),
    record("boxes", 1, 0.41, command="python …"),
    record("inherit", 0, None, error="out of memory"),
    record("inherit", 1, 0.3),
]
COSTS = {"student": Cost(1000, 2e9, (256, 320), 0.01), "boxes": Cost(1000, None, (256, 320), 0.02)}
SECONDS = {"student": {0: 0.5, 1: 1.0}, "boxes": {0: 0.6, 1: 1.4}}
CURVES = {
    "teacher": {0: [(50.0, 0.6)]},
    "student": {0: [(10.0, 0.2), (20.0, 0.4)], 1: [(20.0, 0.4), (40.0, 0.4)]},
    "boxes": {0: [(12.0, 0.2), (24.0, 0.5)], 1: [(24.0, 0.4), (48.0, 0.5)]},
    "inherit": {0: [(10.0, 0.1), (20.0, 0.3)]},
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return results(plan(), RECORDS, COSTS, SECONDS, CURVES)


def test_keys_of_the_format(found: dict[str, Any]) -> None:
    assert all(set(RUN_KEYS) <= set(run) for run in found["runs"])
    assert all(set(SUMMARY_KEYS) <= set(row) for row in found["summary"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_summary(found: dict[str, Any]) -> None:
    rows = {row["recipe"]: row for row in found["summary"]}
    boxes = rows["boxes"]
    assert boxes["map_mean"] == pytest.approx(0.43)
    assert boxes["map_difference"] == pytest.approx(0.04)
    assert boxes["gap_recovered"] == pytest.approx(0.04 / 0.11)
    assert (boxes["seeds"], boxes["positive_seeds"]) == (2, 2)
    assert boxes["map_interval"][0] < 0.04 < boxes["map_interval"][1]
    assert boxes["training_cost_ratio"] == pytest.approx(1.3)
    # 0.4 on the mean curve from (18, 0.3) to (36, 0.5), of the student's 30 seconds.
    assert boxes["time_to_student"] == pytest.approx(27 / 30)
    assert rows["inherit"]["time_to_student"] is None, "never reached"
    assert rows["student"]["time_to_student"] is rows["teacher"]["time_to_student"] is None
    curves = {(run["recipe"], run["seed"]): run["curve"] for run in found["runs"]}
    assert curves["boxes", 0] == [[12.0, 0.2], [24.0, 0.5]]
    assert curves["teacher", None] == []
    assert boxes["cpu_latency_ratio"] == pytest.approx(2.0)
    assert boxes["gflops"] is None
    assert boxes["metrics"]["AP small"] == {"mean": None, "std": None}
    # A failed run has no value; what is left is compared with the student of the same seed.
    assert rows["inherit"]["seeds"] == 1
    assert rows["inherit"]["map_difference"] == pytest.approx(0.3 - 0.38)
    assert rows["inherit"]["map_interval"] is None
    assert rows["inherit"]["positive_seeds"] == 0
    assert rows["inherit"]["parameters"] is None
    assert rows["student"]["positive_seeds"] is None
    assert rows["teacher"]["map_std"] is None


def test_weak_teacher_has_no_gap() -> None:
    weak = [record("teacher", None, 0.383), *RECORDS[1:]]
    rows = results(plan(), weak, {}, {}, {})["summary"]
    assert all(row["gap_recovered"] is None for row in rows)


def test_nothing_at_all() -> None:
    rows = results(plan(), [], {}, {}, {})["summary"]
    assert all(row["map_mean"] is None and row["seeds"] == 0 for row in rows)


def test_split_without_objects() -> None:
    empty = [record(r.member, r.seed, -1.0) for r in RECORDS]
    rows = results(plan(), empty, {}, {}, {})["summary"]
    assert all(row["map_mean"] is None for row in rows)


def test_nothing_detected_counts_as_zero() -> None:
    assert values_of([record("boxes", 0, None)], "mAP") == {"boxes": {0: 0.0}}


def test_classes() -> None:
    assert class_values(RECORDS)["RBC"]["student"] == [0.41, 0.39]
