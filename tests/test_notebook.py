"""The notebook of `examples/` runs from top to bottom, on a few images, with one epoch for each training."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image

from mmkd.compare import measure

from .conftest import ROOT, SOAK
from .project.test_dataset import few
from .test_api import QUICK

NOTEBOOK = json.loads((ROOT / "examples/first_hour.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs() -> None:
    assert NOTEBOOK["nbformat"] == 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(False, id="up to the comparison", marks=pytest.mark.slow),
        pytest.param(True, id="whole", marks=[pytest.mark.soak, SOAK]),
    ],
)
def test_it_runs(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few(tmp_path / "data", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "ROUNDS", 1)
    matplotlib.use("Agg")
    space: dict[str, Any] = {}
    shown = []
    for cell in CODE if whole else CODE[:-2]:
        if "parameters" in cell["metadata"].get("tags", []):
            space |= {"DATA": "data", "WORK": "work", "OPTIONS": QUICK}
            continue
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "cell", "exec"), space)
        if last is not None:  # what Jupyter shows below the cell
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), space))
    pictures = [one for one in shown if isinstance(one, Image.Image)]
    assert len(pictures) == 1 + whole
    assert all(min(picture.size) > 200 for picture in pictures)
    assert space["trained"].checkpoint == Path("work/work_dirs/kd/epoch_1.pth")
    assert space["trained"].checkpoint.is_file()
    if whole:
        rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " mAP " in line]
        assert rows[-3:] == ["teacher", "student", "kd"]
        assert space["comparison"].page.is_file()
