"""The figures of the report, readable on desktop and phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import mmcv
import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter
from PIL import Image

from mmkd.compare.images import Boxes
from mmkd.pictures import add_boxes

# Okabe and Ito's colours, distinct in all common kinds of colour blindness; pale yellow comes last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#F0E442")
TEACHER_COLOR = "#555555"
MARKERS = "osD^vPX*"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--", "oo")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DPI = 160
BARS = 9  # most bars per class: the teacher and one per colour
PANEL_PIXELS = (480, 640)  # smallest and largest length of the longer side


def draw_curves(curves: pd.DataFrame, teacher: float | None, members: Sequence[str], path: Path) -> None:
    """Validation mAP over training time: the mean of the seeds, and a band from the lowest to the highest.

    Args:
        curves: rows of ``member``, ``seed``, ``step``, ``seconds``, ``mAP``.
        teacher: the teacher's mAP, drawn as a line.
        members: names, in the order of their colours.
        path: the picture file to write.
    """
    hours = curves["seconds"].max() > 2 * 3600
    unit, seconds = ("hours", 3600) if hours else ("minutes", 60)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.9), layout="constrained")
        if teacher is not None:
            axes.axhline(teacher, color=TEACHER_COLOR, linestyle="--", label="teacher")
        for index, member in enumerate(members):
            steps = curves[curves["member"] == member].groupby("step")
            if not len(steps):
                continue
            times, rows = steps["seconds"].mean() / seconds, steps["mAP"]
            mean, low, high = rows.mean(), rows.min(), rows.max()
            again = index + index // len(PALETTE)  # a repeated colour gets another marker
            color, marker = PALETTE[index % len(PALETTE)], MARKERS[again % len(MARKERS)]
            axes.fill_between(times, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(times, mean, color=color, marker=marker, markersize=4, label=member)
        longest = curves["seconds"].max() / seconds
        axes.set(xlabel=f"{unit} of training", ylabel="mAP", xlim=(0, 1.05 * longest))
        figure.legend(loc="outside lower center", ncols=_columns(members))
        _save(figure, path)


def draw_losses(shares: pd.DataFrame, names: Sequence[str], path: Path) -> None:
    """Each loss's share of the sum over the iterations, as the mean of the seeds.

    Args:
        shares: one member's rows of ``seed``, ``step``, ``loss``, ``share``.
        names: all losses on the page, in the order of their colours.
        path: the picture file to write.
    """
    table = shares.pivot_table(index="step", columns="loss", values="share", aggfunc="mean").fillna(0.0)
    mine = [name for name in names if name in table.columns]
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
        areas = axes.stackplot(
            table.index,
            *(table[name] for name in mine),
            labels=mine,
            colors=[PALETTE[names.index(name) % len(PALETTE)] for name in mine],
            edgecolor="white",
            linewidth=0.6,
        )
        for area, name in zip(areas, mine):
            if name.startswith("loss_kd_"):
                area.set_hatch("//")
        axes.set(xlabel="iteration", ylabel="share of the loss", ylim=(0, 1))
        axes.set_xlim(table.index.min(), max(table.index.max(), table.index.min() + 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.legend(loc="outside lower center", ncols=2)
        _save(figure, path)


def draw_classes(table: pd.DataFrame, members: Sequence[str], colors: Mapping[str, str], path: Path) -> None:
    """AP by class: grouped bars with the standard deviation over the seeds; a heat map for many members.

    Args:
        table: rows of ``class``, ``member``, ``mean``, ``std``.
        members: names, in the order of the bars.
        colors: member → colour.
        path: the picture file to write.
    """
    classes = list(dict.fromkeys(table["class"]))
    if in_cells(members):
        _draw_cells(
            table.pivot(index="member", columns="class", values="mean").reindex(
                index=members, columns=classes
            ),
            path,
        )
        return
    height = 0.7 + len(classes) * (0.21 * len(members) + 0.22)
    thick = 0.84 / len(members)
    with plt.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = plt.subplots(figsize=(6, height + 0.6), layout="constrained")
        for index, member in enumerate(members):
            rows = table[table["member"] == member].set_index("class").reindex(classes)
            place = np.arange(len(classes)) + (index - (len(members) - 1) / 2) * thick
            axes.barh(
                place,
                rows["mean"],
                thick * 0.92,
                xerr=rows["std"].fillna(0.0).to_numpy() if rows["std"].notna().any() else None,
                color=colors[member],
                edgecolor="white",
                hatch=HATCHES[index % len(HATCHES)],
                linewidth=0,
                error_kw={"elinewidth": 1, "ecolor": "#222222", "capsize": 2},
                label=member,
            )
        axes.set_yticks(np.arange(len(classes)), classes)
        axes.set(xlabel="AP", xlim=(0, None))
        axes.invert_yaxis()
        figure.legend(loc="outside lower center", ncols=_columns(members))
        _save(figure, path)


def in_cells(members: Sequence[str]) -> bool:
    """Whether there are too many members to tell their bars apart."""
    return len(members) > BARS


def _draw_cells(table: pd.DataFrame, path: Path) -> None:
    span = table.max() - table.min()
    values, shades = table.to_numpy(float), ((table - table.min()) / span.where(span > 0, 1.0)).to_numpy()
    with plt.rc_context({**STYLE, "axes.grid": False}):
        size = (2.4 + 0.62 * len(table.columns), 0.9 + 0.27 * len(table))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
        for (row, column), shade in np.ndenumerate(shades):
            value = values[row, column]
            axes.text(
                column,
                row,
                "" if np.isnan(value) else f"{value:.3f}",
                ha="center",
                va="center",
                color="white" if shade > 0.85 else "black",
            )
        axes.set_xticks(range(len(table.columns)), table.columns, rotation=45, ha="left")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(table)), table.index)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        _save(figure, path)


def draw_boxes(image: str, boxes: Boxes, colors: Sequence[str], path: Path) -> None:
    """An image with its boxes: correct ones solid, wrong ones dashed.

    Args:
        image: the image file.
        boxes: boxes in pixels of that file.
        colors: one for each class.
        path: the picture file to write.
    """
    pixels = mmcv.imread(image, channel_order="rgb")
    height, width = pixels.shape[:2]
    least, most = PANEL_PIXELS
    shown = min(most, max(2 * max(height, width), least)) / max(height, width)
    figure = plt.figure(figsize=(width * shown / 100, height * shown / 100), dpi=100)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    add_boxes(axes, zip(boxes.corners.tolist(), boxes.labels.tolist(), boxes.right.tolist()), colors)
    canvas = BytesIO()
    figure.savefig(canvas, dpi=100)
    plt.close(figure)
    # 256 colours keep the page small: it embeds two dozen of these.
    Image.open(canvas).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE).save(path)


def class_colors(count: int) -> list[str]:
    """A colour for each class; colours repeat after eight."""
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def _columns(members: Sequence[str]) -> int:
    """The columns of a legend no wider than its picture."""
    return max(1, min(4, 72 // (8 + max(map(len, members)))))


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
