"""The report's HTML page and its text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmkd import html
from mmkd.compare.figures import in_cells
from mmkd.compare.history import METRICS
from mmkd.compare.images import IOU, SCORE
from mmkd.compare.plan import STUDENT, TEACHER
from mmkd.compare.statistics import SMALLEST_GAP

if TYPE_CHECKING:
    from mmkd.compare.report import Report

NONE = "–"


def render(report: Report, figures: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    """The page as one HTML text with embedded pictures.

    Args:
        report: the report to render.
        figures: the content of ``results.json``.
        pictures: picture files, by part of the page.
    """
    panels, classes, seed = pictures["images"]
    rows = [_row(row) for row in figures["summary"]]
    shown = report.shown(figures)
    return html.render(
        Path(__file__).with_name("report.html.j2"),
        {"data_uri": data_uri},
        figures=figures,
        budget=budget(report),
        shown=shown,
        tiles=tiles(figures, shown),
        notes=notes(report, figures),
        metrics=[name for name in METRICS if any(row["metrics"][name] != NONE for row in rows)],
        rows=rows,
        pictures=pictures,
        cells=in_cells(report.names),
        more_classes=pictures["of_classes"],
        panels=panels,
        classes=classes,
        seed=seed,
        score=SCORE,
        iou=IOU,
        same_split=report.curves_show_the_evaluated_split,
        hardware=_first(figures["runs"], "hardware"),
        versions=_first(figures["runs"], "versions"),
    )


def data_uri(path: Path) -> str:
    """A PNG or GIF as a data URI for ``src``."""
    return f"data:image/{path.suffix[1:]};base64," + base64.b64encode(path.read_bytes()).decode()


def budget(report: Report) -> str:
    """The student's training budget in a few words."""
    cfg = report.runs.student
    epochs, steps = cfg.train_cfg.get("max_epochs"), cfg.train_cfg.get("max_iters")
    length = f"{epochs} epochs" if epochs else f"{steps} iterations"
    if 1 in (epochs, steps):
        length = length[:-1]
    return f"{length}, batch size {cfg.train_dataloader.batch_size}"


def tiles(figures: Mapping[str, Any], shown: str | None) -> list[tuple[str, str, str]]:
    """The headline figures: (label, figure, remark)."""
    rows = {row["recipe"]: row for row in figures["summary"]}
    if shown is None:
        return []
    row, student = rows[shown], rows[STUDENT]
    alone = _mean(student["map_mean"], student["map_std"])
    found = [(f"mAP of {shown}", _mean(row["map_mean"], row["map_std"]), f"student alone: {alone}")]
    if row["map_difference"] is not None:
        better = f"better in {row['positive_seeds']} of {_seeds(row['seeds'])}"
        interval = row["map_interval"]
        if interval is not None:
            zero = ", which contains 0" if interval[0] <= 0 <= interval[1] else ""
            better += f"; 95 % interval {_interval(interval)}{zero}"
        found.append(("gain over the student", _signed(row["map_difference"]), better))
    if row["gap_recovered"] is not None:
        teacher = next(each for each in figures["summary"] if each["role"] == TEACHER)
        gap = f"teacher: {teacher['map_mean']:.3f}"
        found.append(("of the teacher–student gap", _percent(row["gap_recovered"]), gap))
    if row["time_to_student"] is not None:
        share = _percent(row["time_to_student"])
        found.append(("of the training time to the student's mAP", share, "on the validation split"))
    if row["training_cost_ratio"] is not None:
        found.append(("training step cost", f"{row['training_cost_ratio']:.2f} ×", "student alone: 1"))
    return found


def notes(report: Report, figures: Mapping[str, Any]) -> list[str]:
    """Caveats that a reader should know before trusting the figures."""
    plan, rows = report.plan, {row["role"]: row for row in figures["summary"]}
    found = []
    for record in report.records:
        if not record.finished:
            seed = "" if record.seed is None else f", seed {record.seed},"
            found.append(f"{record.member}{seed} has no results: {record.error or 'not finished'}")
    missing = len(report.runs.all) - len(report.records)
    if missing:
        found.append(f"{missing} of {len(report.runs.all)} runs have not started.")
    if len(plan.seeds) == 1:
        found.append("Only one seed: no spread and no confidence interval; the differences may be noise.")
    teacher, student = rows.get(TEACHER), rows[STUDENT]
    if teacher is None:
        found.append("This comparison has no teacher, so no recovered gap is reported.")
    elif teacher["map_mean"] is not None and student["map_mean"] is not None:
        gap = teacher["map_mean"] - student["map_mean"]
        if gap < SMALLEST_GAP:
            found.append(
                f"The teacher is not at least {SMALLEST_GAP} mAP better than the student alone "
                f"({_signed(gap)}), so no recovered gap is reported."
            )
    if all(row["map_mean"] is None for row in figures["summary"]) and report.finished:
        found.append(f"No run has an mAP: the {plan.evaluate} split has no annotated objects.")
    for name, lines in figures["budget_differences"].items():
        found.append(f"{name} differs from the student in more than distillation: {'; '.join(lines[:5])}")
    for name, others in report.runs.other_teachers.items():
        found.append(f"{name} is distilled from {', '.join(others)}, not from the teacher in the table.")
    return found


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    interval, size = row["map_interval"], row["image_size"]
    return {
        "name": row["recipe"],
        "role": row["role"],
        "config": row["config"],
        "badge": _badge(row),
        "lost": row["map_difference"] is not None and row["map_difference"] <= 0,
        "metrics": {name: _mean(value["mean"], None) for name, value in row["metrics"].items()},
        "spreads": {
            name: "" if value["std"] is None else f"± {value['std']:.3f}"
            for name, value in row["metrics"].items()
        },
        "difference": NONE if row["map_difference"] is None else _signed(row["map_difference"]),
        "interval": "" if interval is None else _interval(interval),
        "better": NONE if row["positive_seeds"] is None else f"{row['positive_seeds']} of {row['seeds']}",
        "gap": NONE if row["gap_recovered"] is None else _percent(row["gap_recovered"]),
        "parameters": NONE if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M",
        "gflops": NONE if row["gflops"] is None else f"{row['gflops']:.2f}",
        "size": NONE if size is None else f"{size[1]}×{size[0]}",
        "latency": NONE if row["cpu_latency_ms"] is None else f"{row['cpu_latency_ms']:.1f} ms",
        "latency_ratio": "" if row["cpu_latency_ratio"] is None else f"{row['cpu_latency_ratio']:.2f} ×",
        "cost": NONE if row["training_cost_ratio"] is None else f"{row['training_cost_ratio']:.2f} ×",
    }


def _mean(mean: float | None, std: float | None) -> str:
    if mean is None:
        return NONE
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _badge(row: Mapping[str, Any]) -> str:
    """The text below a recipe's name: a recommendation only holds if the recipe gained."""
    if not row["recommended"]:
        return ""
    gained = row["map_difference"] is None or row["map_difference"] > 0
    return "recommended" if gained else "recommended by the plan, not better here"


def _interval(ends: Sequence[float]) -> str:
    return f"{_signed(ends[0])} to {_signed(ends[1])}"


def _percent(share: float) -> str:
    return f"{round(100 * share)} %".replace("-", "−")


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _first(runs: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    return next((run[key] for run in runs if run[key]), {})
