from __future__ import annotations

import builtins
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from mmkd import UserError

from .conftest import ROOT, SOAK, run_tool

NAMES = ["teacher", "student alone", "CE + KD", "CE + cosine", "CE + regressor MSE"]
SCRIPT = "examples/classification_digits.py"


@pytest.fixture
def digits() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("classification_digits", ROOT / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path, threads = list(sys.path), torch.get_num_threads()
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    "teacher", ["cnn", "last-layer", pytest.param("vit", marks=(pytest.mark.soak, SOAK))]
)
def test_digits(digits: ModuleType, capsys: pytest.CaptureFixture[str], teacher: str) -> None:
    pytest.importorskip("sklearn")
    few = ["--epochs", "40", "--teacher-epochs", "8", "--unlabelled"]
    (found,) = digits.main(["--seeds", "0", "--teacher", teacher, *few])
    assert list(found) == NAMES
    assert all(0.2 < value <= 1 for value in found.values()), found  # chance is 0.1
    assert found["teacher"] > max(0.6, found["student alone"])
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    for name, line in zip(NAMES, table[1:], strict=True):
        row = re.fullmatch(r"(.+?) +([\d.]+) ± +([\d.]+) +([+-][\d.]+)", line)
        assert row is not None, line
        assert row[1] == name
        assert float(row[2]) == pytest.approx(100 * found[name], abs=0.01)
        gain = 100 * (found[name] - found["student alone"])
        assert float(row[4]) == pytest.approx(gain, abs=0.01)


def test_table(digits: ModuleType) -> None:
    runs = [{"student alone": 0.5, "x": 0.7}, {"student alone": 0.6, "x": 0.6}]
    lines = digits.table(runs).splitlines()
    assert lines[1].split() == ["student", "alone", "55.00", "±", "7.07", "+0.00"]
    assert lines[2].split() == ["x", "65.00", "±", "7.07", "+10.00"]


def test_the_same_seed_gives_the_same(digits: ModuleType) -> None:
    pytest.importorskip("sklearn")
    assert digits.run("cnn", 0, 3, 1, 64) == digits.run("cnn", 0, 3, 1, 64)


def test_only_the_last_layer_is_fine_tuned(digits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    train, _ = digits.load_digits()
    before: list[dict[str, Any]] = []
    fit = digits.fit

    def watched(model: Any, data: Any, *args: Any, **options: Any) -> None:
        before.append({name: value.clone() for name, value in model.state_dict().items()})
        before[-1]["labels"] = set(data[1].tolist())
        fit(model, data, *args, **options)

    monkeypatch.setattr(digits, "fit", watched)
    teacher = digits.train_teacher("last-layer", train, 1, seed=0)
    assert before[0].pop("labels") == set(range(5))
    assert before[1].pop("labels") == set(range(10))
    changed = {
        name for name, value in teacher.state_dict().items() if not torch.equal(value, before[1][name])
    }
    assert changed == {"classifier.3.weight", "classifier.3.bias"}


def test_without_scikit_learn(digits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_sklearn(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        digits.main(["--seeds", "0"])


@pytest.mark.slow
def test_the_command_line(digits: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    done: subprocess.CompletedProcess[str] = run_tool(SCRIPT, "--help")
    assert done.returncode == 0, done.stderr
    assert "{cnn,vit,last-layer}" in done.stdout
    with pytest.raises(SystemExit, match="2"):
        digits.main(["--teacher", "resnet"])
    assert "invalid choice: 'resnet'" in capsys.readouterr().err
