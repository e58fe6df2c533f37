"""Draw the benchmarks' results: docs/pictures/benchmarks.png.

python benchmarks/plot.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from common import OUT

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "benchmarks.png"
OURS, OTHERS, GREY = "#1f6f8b", "#c98a3b", "#9a9a9a"


def read(name: str) -> Any:
    """The figures of one benchmark."""
    return json.loads((OUT / f"{name}.json").read_text())


def bars(axis: Any, ratios: dict[str, float], title: str) -> None:
    """Draw horizontal bars with their values."""
    names = list(ratios)[::-1]
    colors = [OURS if "mmkd" in name else GREY if "alone" in name else OTHERS for name in names]
    drawn = axis.barh(names, [ratios[name] for name in names], color=colors)
    axis.bar_label(drawn, fmt="%.3g ×", padding=4, fontsize=9)
    axis.set_xlim(0, 1.18 * max(ratios.values()))
    axis.set_title(title, loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Read the JSON files and draw three panels."""
    step, kernels, scaling = read("step_cost"), read("loss_kernels"), read("scaling")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), width_ratios=[1.25, 1, 1])
    bars(left, step["ratios"], "A training step, the student alone = 1")

    rows = [row for row in kernels["rows"] if row["N"] == 44_000]
    speeds = {f"{row['activation']}, K = {row['K']}": row["speed"]["PyTorch"] for row in rows}
    drawn = middle.barh(list(speeds)[::-1], list(speeds.values())[::-1], color=OURS)
    middle.bar_label(drawn, fmt="%.1f ×", padding=4, fontsize=9)
    middle.axvline(1, color=GREY, linewidth=1)
    middle.set_xlim(0, 1.18 * max(speeds.values()))
    middle.set_title("KL of 44 000 priors: PyTorch's time / mmkd's", loc="left", fontsize=11)
    middle.spines[["top", "right"]].set_visible(False)

    for name, label in (("batch", "batch"), ("size", "image side"), ("classes", "classes")):
        points = scaling[name]["points"]
        grown = [point / points[0] for point in points]
        line = right.plot(grown, scaling[name]["mmkd"], "o-", label=f"{label}, distilled")
        right.plot(
            grown, scaling[name]["alone"], "o:", color=line[0].get_color(), label=f"{label}, student alone"
        )
    right.set(xscale="log", yscale="log", xlabel="batch, side or classes, the first point = 1")
    right.set_xticks([1, 2, 4, 8, 20, 80, 320], labels=["1", "2", "4", "8", "20", "80", "320"])
    right.set_yticks([1, 2, 4], labels=["1", "2", "4"])
    right.minorticks_off()
    right.set_title("A step's time, its first point = 1", loc="left", fontsize=11)
    right.legend(fontsize=8, frameon=False, loc="upper right")
    right.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"drawn: {PICTURE}")


if __name__ == "__main__":
    main()
