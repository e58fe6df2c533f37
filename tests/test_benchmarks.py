"""The benchmarks run; what they measure is in docs/benchmarks.md."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_step_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    configs = ["--student", "configs/bccd/student.py", "--teacher", "configs/bccd/teacher.py"]
    few = ["--size", "64", "--batch", "2", "--rounds", "2", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["step_cost.py", *configs, *few])
    benchmark("step_cost").main()
    found = json.loads(out.read_text())
    assert found["ratios"]["student alone"] == 1
    assert set(found["ratios"]) == {"student alone", "mmdet style", "mmkd, precision='fp32'", "mmkd"}
    assert all(len(values) == 2 for values in found["rounds"].values())
    assert "| mmkd |" in capsys.readouterr().out


def test_loss_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("loss_kernels")
    monkeypatch.setattr(module, "SIZES", [(3000, 50)])
    monkeypatch.setattr(module, "OUT", tmp_path / "out.json")
    module.main()
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["activation"] for row in rows] == ["softmax", "sigmoid"]
    assert capsys.readouterr().out.count("| 3000 | 50 |") == 2
