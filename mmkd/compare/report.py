"""The report of a comparison: figures as JSON and CSV, pictures, and one page with all of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from mmkd.compare.figures import (
    PALETTE,
    TEACHER_COLOR,
    class_colors,
    draw_boxes,
    draw_classes,
    draw_curves,
    draw_losses,
)
from mmkd.compare.history import curve, loss_shares, read_history, seconds_per_iteration, time_curve
from mmkd.compare.images import Boxes, Image, most_different, read_images
from mmkd.compare.measure import measure
from mmkd.compare.page import render
from mmkd.compare.plan import STUDENT, TEACHER
from mmkd.compare.records import EVALUATION, PREDICTIONS, Record, read_record
from mmkd.compare.results import class_values, results
from mmkd.compare.runs import EVALUATION_CONFIG, Run, Runs
from mmkd.compare.side_by_side import draw_folder, draw_split
from mmkd.durable import write_json

CLASSES_SHOWN, IMAGES_SHOWN = 10, 3
GAIN, LOSS = "gain", "loss"
SIDE_BY_SIDE = "side_by_side.gif"
T = TypeVar("T")
History = tuple[Run, list[dict[str, Any]]]
Values = dict[str, dict[int, T]]


@dataclass(frozen=True)
class Panels:
    """One image as each member sees it.

    Attributes:
        kind: `GAIN` or `LOSS` of the shown variant over the student alone.
        image: the image and its boxes.
        files: title → picture file.
    """

    kind: str
    image: Image
    files: Mapping[str, Path]


@dataclass
class Report:
    """Writes the report of the finished runs.

    Args:
        runs: a plan's runs.
        folder: the folder to write to.
    """

    runs: Runs
    folder: Path

    def __post_init__(self) -> None:
        self.plan = self.runs.plan
        self.records = self.runs.records()
        done = [record for record in self.records if record.finished]
        self.finished = {(record.member, record.seed): record for record in done}
        self.names = [m.name for m in self.plan.members if any(r.member == m.name for r in done)]
        # Colours follow the order of the plan, so that a failed run does not change the others'.
        trained = [member.name for member in self.plan.members if member.name != TEACHER]
        self.colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(trained)}
        self.colors[TEACHER] = TEACHER_COLOR
        self.trained = trained

    def write(self) -> Path:
        """Measure, draw and write.

        Returns:
            Path of the page.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (*self.folder.glob("*.png"), self.folder / SIDE_BY_SIDE):
            old.unlink(missing_ok=True)
        rows = [(run, read_history(run.folder)) for run in self.runs.all if run.seed is not None]
        figures = results(
            self.plan,
            self.records,
            self._costs(),
            self._of_finished(seconds_per_iteration, rows),
            self._of_finished(time_curve, rows),
        )
        figures["budget_differences"] = self.runs.differences
        write_json(self.folder / "results.json", figures)
        self._write_tables(figures)
        pictures = {
            "curves": self._curves(rows, figures),
            "losses": self._losses(rows),
            "classes": self._classes(figures),
            "of_classes": classes if (classes := len(class_values(self.records))) > CLASSES_SHOWN else None,
            "images": self._images(self.shown(figures)),
        }
        side_by_side = self.folder / SIDE_BY_SIDE
        pictures["side_by_side"] = side_by_side if side_by_side.is_file() else None
        page = self.folder / "index.html"
        page.write_text(render(self, figures, pictures), encoding="utf-8")
        return page

    def shown(self, figures: Mapping[str, Any]) -> str | None:
        """The variant to highlight: the recommended one, or else the one with the best mean mAP."""
        variants = {variant.name for variant in self.plan.variants}
        found = [s for s in figures["summary"] if s["recipe"] in variants and s["map_mean"] is not None]
        best = max(found, key=lambda row: (row["recommended"], row["map_mean"]), default=None)
        return None if best is None else str(best["recipe"])

    @property
    def curves_show_the_evaluated_split(self) -> bool:
        """Whether validation during training and the table use the same images."""
        cfg = self.runs.student
        if self.plan.evaluate == "val":
            return True
        return bool(cfg.get("val_dataloader")) and cfg.val_dataloader.dataset == cfg.test_dataloader.dataset

    def _costs(self) -> dict[str, Any]:
        first: dict[str, Record] = {}
        for record in self.finished.values():
            first.setdefault(record.member, record)
        members = {member.name: member for member in self.plan.members}
        return measure(
            {name: (self.runs.evaluation(members[name]), str(first[name].checkpoint)) for name in self.names}
        )

    def _of_finished(self, read: Callable[[Any], T | None], histories: list[History]) -> Values[T]:
        """What each finished training logged: member → seed → value."""
        found: Values[T] = {}
        for run, rows in histories:
            value = read(rows)
            if value is not None and run.seed is not None and (run.member.name, run.seed) in self.finished:
                found.setdefault(run.member.name, {})[run.seed] = value
        return found

    def _write_tables(self, figures: Mapping[str, Any]) -> None:
        summary = pd.json_normalize(figures["summary"], sep=" ").drop(columns=["image_size"])
        summary.to_csv(self.folder / "summary.csv", index=False)
        runs = pd.json_normalize(figures["runs"], sep=" ")
        kept = [column for column in runs if not str(column).startswith(("versions", "hardware"))]
        kept.remove("curve")
        runs[kept].to_csv(self.folder / "runs.csv", index=False)

    def _curves(self, histories: list[History], figures: Mapping[str, Any]) -> Path | None:
        points = [
            {"member": run.member.name, "seed": run.seed, "step": step, "seconds": seconds, "mAP": value}
            for run, rows in histories
            if run.member.name != TEACHER
            for (step, value), (seconds, _) in zip(curve(rows), time_curve(rows))
        ]
        if not points:
            return None
        frame = pd.DataFrame(points)
        frame.to_csv(self.folder / "curves.csv", index=False)
        teacher = next((s["map_mean"] for s in figures["summary"] if s["role"] == TEACHER), None)
        line = teacher if self.curves_show_the_evaluated_split else None
        path = self.folder / "curves.png"
        if frame["step"].nunique() < 2:  # one validation: no curve, and the table has its value
            path.unlink(missing_ok=True)
            return None
        draw_curves(frame, line, self.trained, path)
        return path

    def _losses(self, histories: list[History]) -> dict[str, Path]:
        points = [
            {"member": run.member.name, "seed": run.seed, "step": step, "loss": loss, "share": share}
            for run, rows in histories
            if run.member.name != TEACHER
            for step, loss, share in loss_shares(rows)
        ]
        if not points:
            return {}
        frame = pd.DataFrame(points)
        frame.to_csv(self.folder / "losses.csv", index=False)
        names = sorted(frame["loss"].unique(), key=lambda name: name.startswith("loss_kd_"))
        pictures = {}
        for member in self.trained:
            shares = frame[frame["member"] == member]
            if len(shares):
                pictures[member] = self.folder / f"losses_{member}.png"
                draw_losses(shares, names, pictures[member])
        return pictures

    def _classes(self, figures: Mapping[str, Any]) -> Path | None:
        rows = [
            {
                "class": name,
                "member": member,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
            }
            for name, members in class_values(self.records).items()
            for member, values in members.items()
        ]
        if not rows:
            return None
        frame = pd.DataFrame(rows).astype({"std": float})
        frame.to_csv(self.folder / "classes.csv", index=False)
        means = frame.pivot(index="class", columns="member", values="mean")
        variant = self.shown(figures)
        if variant in means and STUDENT in means:
            order = (means[variant] - means[STUDENT]).abs().sort_values(ascending=False, kind="stable").index
            chosen = set(order[:CLASSES_SHOWN])
        else:
            chosen = set(means.index[:CLASSES_SHOWN])
        path = self.folder / "classes.png"
        draw_classes(frame[frame["class"].isin(chosen)], self.names, self.colors, path)
        return path

    def show(self, images: str) -> Path | None:
        """Draw teacher, student alone and the highlighted variant side by side on images without labels.

        Args:
            images: a folder, a list or a COCO file.

        Returns:
            The folder of the pictures and of a GIF of all; ``None`` if no variant or no student is finished.

        Raises:
            UserError: an image cannot be read.
            ToolError: a detector failed.
        """
        figures = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        seed, folders = self._seen(self.shown(figures))
        if seed is None:
            return None
        records = {name: read_record(folder) for name, folder in folders.items()}
        members = {
            name: (folders[name] / EVALUATION_CONFIG, str(record.checkpoint))
            for name, record in records.items()
            if record is not None
        }
        draw_folder(images, members, self.folder / "images")
        return self.folder / "images"

    def _seen(self, variant: str | None) -> tuple[int | None, dict[str, Path]]:
        """The first seed of which student and variant are finished; folders of these and the teacher."""
        seeds = [s for s in self.plan.seeds if {(STUDENT, s), (variant, s)} <= set(self.finished)]
        if variant is None or not seeds:
            return None, {}
        teacher = [member for member, _ in self.finished if member == TEACHER]
        folders = {run.member.name: run.folder for run in self.runs.all if run.seed == seeds[0]}
        folders |= {run.member.name: run.folder for run in self.runs.all if run.member.name == TEACHER}
        return seeds[0], {name: folders[name] for name in (*teacher[:1], STUDENT, variant)}

    def _images(self, variant: str | None) -> tuple[list[Panels], list[tuple[str, str]], int | None]:
        """The images where variant and student differ most, the colours of classes, and the seed."""
        seed, folders = self._seen(variant)
        if variant is None or seed is None:
            return [], [], None
        cfg = self.runs.evaluation(self.plan.student)
        predictions = {name: folder / EVALUATION / PREDICTIONS for name, folder in folders.items()}
        images, classes = read_images(cfg, predictions)
        if images:
            draw_split(images, classes, self.folder / SIDE_BY_SIDE)
        colors = class_colors(len(classes))
        panels = []
        for kind, found in zip((GAIN, LOSS), most_different(images, variant, STUDENT, IMAGES_SHOWN)):
            for number, image in enumerate(found, 1):
                seen: dict[str, Boxes] = {"ground truth": image.truth, **image.found}
                files = {
                    title: self.folder / f"{kind}_{number}_{title.replace(' ', '_')}.png" for title in seen
                }
                for title, boxes in seen.items():
                    draw_boxes(image.path, boxes, colors, files[title])
                panels.append(Panels(kind, image, files))
        return panels, list(zip(classes, colors)), seed
