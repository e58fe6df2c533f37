"""What a training logged: metrics and losses over time, seconds per iteration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.history import logged_rows

# The report's name → the evaluator's, without its prefix; the first one present counts.
METRICS = {
    "mAP": ("bbox_mAP", "mAP"),
    "AP50": ("bbox_mAP_50", "AP50"),
    "AP75": ("bbox_mAP_75", "AP75"),
    "AP small": ("bbox_mAP_s",),
    "AP medium": ("bbox_mAP_m",),
    "AP large": ("bbox_mAP_l",),
}
PRECISION = "_precision"  # what CocoMetric adds to the name of a class


def metric(metrics: Mapping[str, float], name: str) -> float | None:
    """One of `METRICS`, in [0, 1].

    Args:
        metrics: under the evaluator's names; empty if nothing was detected.
        name: the report's name for the metric.

    Returns:
        0 if nothing was detected; ``None`` if there are no objects (COCO's −1) or the evaluator has no such
        metric.
    """
    if not metrics:
        return 0.0
    short = {key.rpartition("/")[2]: value for key, value in metrics.items()}
    value = next((short[key] for key in METRICS[name] if key in short), None)
    return None if value is None or value < 0 or not math.isfinite(value) else float(value)


def class_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """AP by class, for the classes that have one."""
    found = {}
    for key, value in metrics.items():
        name = key.partition("/")[2] or key
        if name.endswith(PRECISION) and math.isfinite(value):
            found[name.removesuffix(PRECISION)] = float(value)
    return found


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows that a training logged, in the order of their steps.

    A step logged both before and after an interruption counts once, with the later row.

    Args:
        folder: the training's work dir.
    """
    rows: dict[tuple[bool, int], dict[str, Any]] = {}
    for row in logged_rows(folder):
        if "step" in row:
            rows[("loss" in row, int(row["step"]))] = row
    return [rows[key] for key in sorted(rows)]


def curve(rows: list[dict[str, Any]], name: str = "mAP") -> list[tuple[int, float]]:
    """(epoch or iteration, value) of each validation."""
    points = []
    for row in rows:
        if "loss" in row or "lr" in row:
            continue
        value = metric({key: value for key, value in row.items() if "/" in key}, name)
        if value is not None:
            points.append((int(row["step"]), value))
    return points


def time_curve(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(training seconds so far, mAP) of each validation; empty if no time was logged.

    To leave out disturbances of the machine, the time is iterations × median seconds per iteration, with the
    teacher and without validation.
    """
    points, seconds = curve(rows), seconds_per_iteration(rows)
    if not points or seconds is None:
        return []
    whole = seconds * max(int(row["step"]) for row in rows if "loss" in row)
    return [(whole * step / points[-1][0], value) for step, value in points]


def time_to(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """When a curve first reaches a value, interpolated linearly; ``None`` if it never does.

    Args:
        points: (seconds, value), sorted by time.
        target: the value to reach.

    Example:
        >>> time_to([(10.0, 0.2), (20.0, 0.4)], 0.3)
        15.0
    """
    for index, (end, high) in enumerate(points):
        if high >= target:
            start, low = points[index - 1] if index else (end, high)
            return end if high == low else start + (end - start) * (target - low) / (high - low)
    return None


def loss_shares(rows: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    """(iteration, loss name, share of the sum) of each logged loss."""
    points = []
    for row in rows:
        if "loss" not in row:
            continue
        parts = {key: float(value) for key, value in row.items() if "loss" in key and key != "loss"}
        total = sum(abs(value) for value in parts.values())
        if total > 0 and math.isfinite(total):
            points += [(int(row["step"]), key, abs(value) / total) for key, value in parts.items()]
    return points


def seconds_per_iteration(rows: list[dict[str, Any]]) -> float | None:
    """The median of the logged times; ``None`` if there are none."""
    times = [float(row["time"]) for row in rows if "loss" in row and "time" in row]
    return statistics.median(times) if times else None
