from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

from mmkd.compare.figures import BARS, draw_classes, in_cells


@pytest.mark.parametrize("count", [BARS, BARS + 3])
def test_many_detectors_are_cells_with_figures(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [f"member_{index}" for index in range(count)]
    rows = [
        {"class": name, "member": member, "mean": 0.1 + index / 100, "std": 0.01}
        for name in ("one", "two")
        for index, member in enumerate(members)
        if (name, index) != ("two", 1)  # of one the figures of a class are missing
    ]
    written: list[str] = []
    text = Axes.text

    def note(self: Axes, x: float, y: float, s: str, *more: object, **options: object) -> object:
        written.append(s)
        return text(self, x, y, s, *more, **options)

    monkeypatch.setattr(Axes, "text", note)
    path = tmp_path / "classes.png"
    draw_classes(pd.DataFrame(rows), members, dict.fromkeys(members, "#000000"), path)
    assert Image.open(path).width > 300
    assert in_cells(members) == (count > BARS)
    assert written == ([] if count == BARS else [v for i in range(count) for v in cells(i)])


def cells(index: int) -> tuple[str, str]:
    value = f"{0.1 + index / 100:.3f}"
    return value, "" if index == 1 else value
