from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from mmkd.compare import curves as module
from mmkd.compare.tables import RUN_KEYS

from ..conftest import ROOT


def results(path: Path, *runs: dict[str, Any]) -> str:
    rows = [dict.fromkeys(RUN_KEYS) | run for run in runs]
    path.write_text(json.dumps({"runs": rows, "summary": []}))
    return str(path)


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(module, "draw_curves", lambda *given: drawn.append(given))
    runs = [
        {"recipe": "teacher", "seed": 0, "curve": [[9.0, 0.9]]},
        {"recipe": "student", "seed": 0, "curve": [[1.0, 0.2], [2.0, 0.3]]},
        {"recipe": "kd", "seed": 1, "curve": [[1.5, 0.4]]},
        {"recipe": "kd", "seed": 2, "curve": None},
    ]
    file = results(tmp_path / "results.json", *runs)
    assert module.main([file, "all.png"]) == 0
    assert module.main([file, "kd.png", "--only", "kd"]) == 0
    (rows, teacher, members, path), (only, *_) = drawn
    assert (teacher, members, path) == (None, ["student", "kd"], Path("all.png"))
    assert rows.values.tolist() == [
        ["student", 0, 1, 1.0, 0.2],
        ["student", 0, 2, 2.0, 0.3],
        ["kd", 1, 1, 1.5, 0.4],
    ]
    assert only["member"].tolist() == ["kd"]
    with pytest.raises(SystemExit):
        module.main([file, "x.png", "--only", "teacher"])


def test_the_committed_picture(tmp_path: Path) -> None:
    """By the command of docs/compare.md, from the committed results."""
    page = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    words = next(line for line in page.splitlines() if "mmkd.compare.curves" in line).split()
    results, picture = words[3:5]
    assert module.main([results, str(tmp_path / "again.png")]) == 0
    with Image.open(tmp_path / "again.png") as again, Image.open(picture) as committed:
        assert again.size == committed.size
    rows = module.curves_of(Path(results))
    last = rows.sort_values("seconds").groupby(["member", "seed"])["mAP"].last()
    assert isinstance(last, pd.Series)
    means = last.groupby("member").mean()
    assert means["kd_unlabelled"] > means["kd_eighth"] > means["student"]


def test_results_without_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = results(tmp_path / "old.json", {"recipe": "student", "seed": 0})
    assert module.main([file, str(tmp_path / "x.png")]) == 2
    assert "No learning curves." in capsys.readouterr().err
