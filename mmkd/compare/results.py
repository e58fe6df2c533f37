"""The figures of a comparison: one entry per run, one per member."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmkd.compare.history import METRICS, class_metrics, metric, time_to
from mmkd.compare.measure import Cost
from mmkd.compare.plan import DISTILLED, STUDENT, TEACHER, Member, Plan
from mmkd.compare.records import Record
from mmkd.compare.statistics import gap_recovered, paired_difference, spread

Curve = Sequence[tuple[float, float]]  # (seconds of training, mAP) of each validation
Values = dict[str, dict[int, float]]  # member → seed → value; a teacher's seed is -1


def values_of(records: Sequence[Record], name: str) -> Values:
    """One metric of every finished run.

    Args:
        records: the runs' records.
        name: one of `METRICS`.
    """
    found: Values = {}
    for record in records:
        value = metric(record.metrics, name) if record.finished else None
        if value is not None:
            found.setdefault(record.member, {})[-1 if record.seed is None else record.seed] = value
    return found


def class_values(records: Sequence[Record]) -> dict[str, dict[str, list[float]]]:
    """Class → member → AP of each seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for name, value in class_metrics(record.metrics).items() if record.finished else ():
            found.setdefault(name, {}).setdefault(record.member, []).append(value)
    return found


def results(
    plan: Plan,
    records: Sequence[Record],
    costs: Mapping[str, Cost],
    step_seconds: Mapping[str, Mapping[int, float]],
    curves: Mapping[str, Mapping[int, Curve]],
) -> dict[str, Any]:
    """The content of ``results.json``.

    Args:
        plan: the comparison.
        records: the runs' records.
        costs: member → cost.
        step_seconds: member → seed → median seconds per training iteration.
        curves: member → seed → (seconds of training, mAP) of each validation.

    Returns:
        ``runs`` and ``summary`` with plain numbers and text; unknown values are ``None``.
    """
    return {
        "name": plan.name,
        "dataset": plan.dataset,
        "evaluated_on": plan.evaluate,
        "seeds": list(plan.seeds),
        "runs": [_run(plan, record, curves) for record in records],
        "summary": [
            _summary(plan, member, records, costs, step_seconds)
            | {"time_to_student": time_to_student(curves, member)}
            for member in plan.members
        ],
    }


def time_to_student(curves: Mapping[str, Mapping[int, Curve]], member: Member) -> float | None:
    """When a member reaches the final validation mAP of the student alone, as a share of the training time.

    Both curves are means over the seeds that both members have.

    Args:
        curves: as for `results`.
        member: a member of the plan.

    Returns:
        The share; ``None`` if the member never reaches it or is not distilled, or no times were logged.
    """
    mine, alone = curves.get(member.name, {}), curves.get(STUDENT, {})
    seeds = sorted(mine.keys() & alone.keys())
    if member.role != DISTILLED or not seeds or not all(mine[seed] and alone[seed] for seed in seeds):
        return None
    seconds, target = np.mean([alone[seed][-1] for seed in seeds], axis=0)
    validations = min(len(mine[seed]) for seed in seeds)
    mean = np.mean([mine[seed][:validations] for seed in seeds], axis=0).tolist()
    reached = time_to(mean, float(target))
    return None if reached is None else reached / float(seconds)


def _run(plan: Plan, record: Record, curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Any]:
    curve = curves.get(record.member, {}).get(-1 if record.seed is None else record.seed, ())
    return {
        "dataset": plan.dataset,
        "recipe": record.member,
        "config": record.config,
        "seed": record.seed,
        "metrics": {
            key: value if math.isfinite(value) and value >= 0 else None
            for key, value in record.metrics.items()
        },
        "curve": [[round(seconds, 1), value] for seconds, value in curve],
        "error": record.error,
        "commit": record.commit,
        "command": record.command,
        "versions": record.versions,
        "hardware": record.hardware,
    }


def _summary(
    plan: Plan,
    member: Member,
    records: Sequence[Record],
    costs: Mapping[str, Cost],
    step_seconds: Mapping[str, Mapping[int, float]],
) -> dict[str, Any]:
    maps = values_of(records, "mAP")
    mine, alone = maps.get(member.name, {}), maps.get(STUDENT, {})
    mean = spread(list(mine.values()))
    difference = paired_difference(mine, alone) if member.role == DISTILLED else None
    gap = None
    teacher = list(maps.get(TEACHER, {}).values())
    if difference is not None and teacher:
        pairs = [alone[seed] for seed in mine.keys() & alone.keys()]
        gap = gap_recovered(difference.mean, sum(pairs) / len(pairs), teacher[0])
    cost, student_cost = costs.get(member.name), costs.get(STUDENT)
    times, student_times = step_seconds.get(member.name, {}), step_seconds.get(STUDENT, {})
    ratios = [times[seed] / student_times[seed] for seed in times.keys() & student_times.keys()]
    return {
        "dataset": plan.dataset,
        "recipe": member.name,
        "role": member.role,
        "config": member.config,
        "recommended": member.recommended,
        "seeds": len(mine),
        "positive_seeds": None if difference is None else difference.positive,
        "map_mean": None if mean is None else mean.mean,
        "map_std": None if mean is None else mean.std,
        "map_difference": None if difference is None else difference.mean,
        "map_interval": None
        if difference is None or difference.low is None
        else [difference.low, difference.high],
        "gap_recovered": gap,
        "metrics": {name: _mean_std(values_of(records, name).get(member.name, {})) for name in METRICS},
        "parameters": None if cost is None else cost.parameters,
        "gflops": None if cost is None or cost.flops is None else cost.flops / 1e9,
        "image_size": None if cost is None else list(cost.size),
        "cpu_latency_ms": None if cost is None else 1000 * cost.latency,
        "cpu_latency_ratio": None
        if cost is None or student_cost is None
        else cost.latency / student_cost.latency,
        "training_cost_ratio": sum(ratios) / len(ratios) if ratios and member.role != TEACHER else None,
    }


def _mean_std(values: Mapping[int, float]) -> dict[str, float | None]:
    found = spread(list(values.values()))
    return {"mean": None, "std": None} if found is None else {"mean": found.mean, "std": found.std}
