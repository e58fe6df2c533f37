from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmkd.errors import UserError
from mmkd.sweeps import read_sweep

from ..conftest import ROOT

SHIPPED = ROOT / "configs/sweeps/atss_bayes.yaml"


def changed(tmp_path: Path, **entries: Any) -> Path:
    content = yaml.safe_load(SHIPPED.read_text())
    for key, value in entries.items():
        if value is None:
            content.pop(key)
        else:
            content[key] = value
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_shipped_file() -> None:
    sweep = read_sweep(SHIPPED)
    assert sweep.method == "bayes"
    assert sweep.maximize
    assert sweep.config == "configs/bccd/kd.py"
    command = sweep.command_for({"lr": 0.1, "model.x": [1, 2]})
    assert command == [
        "/usr/bin/env",
        sys.executable,
        "tools/train.py",
        "configs/bccd/kd.py",
        "--cfg-options",
        "lr=0.1",
        "model.x=[1, 2]",
    ]


def test_macros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    path = changed(
        tmp_path, command=["${program}", "c.py", "${args}", "root=${envvar:DATA}/x", "${args_json}"]
    )
    assert read_sweep(path).command_for({"a": "b c"}) == [
        "tools/train.py",
        "c.py",
        "--a=b c",
        "root=/data/x",
        '{"a": "b c"}',
    ]


@pytest.mark.parametrize(
    ("given", "fixed"),
    [
        (["--cfg-options", "${args_no_hyphens}"], []),
        (["--cfg-options", "${args_no_hyphens}", "--amp"], ["--amp"]),
        (["--cfg-options", "a=1", "${args_no_hyphens}"], ["--cfg-options", "a=1"]),
        (["${args}", "--work-dir", "${envvar:PLACE}"], ["--work-dir", "there"]),
    ],
)
def test_fixed_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], fixed: list[str]
) -> None:
    monkeypatch.setenv("PLACE", "there")
    command = ["${env}", "${interpreter}", "-m", "x", "--n=2", "${program}", "configs/bccd/kd.py", *given]
    assert read_sweep(changed(tmp_path, command=command)).fixed_arguments == fixed


def test_boolean_flags(tmp_path: Path) -> None:
    path = changed(tmp_path, command=["${program}", "c.py", "${args_no_boolean_flags}", "${args}"])
    values = {"a": True, "b": False, "c": 1}
    assert read_sweep(path).command_for(values)[2:] == ["--a", "--c=1", "--a=True", "--b=False", "--c=1"]
    assert read_sweep(path).command_for({"b": False}) == ["tools/train.py", "c.py", "--b=False"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"command": ["${program}", "${argz}"]},
            r"has unknown macro \$\{argz\}; valid: .*\$\{args_no_hyphens\}",
        ),
        ({"program": None}, "needs `program`"),
        ({"method": "hyperopt"}, "one of bayes, random, grid, found 'hyperopt'"),
        ({"metric": {"name": "x", "goal": "max"}}, "metric must be"),
        ({"parameters": {}}, "`parameters` is empty"),
        ({"parameters": {"lr": {"min": 1}}}, "lr needs `values`"),
        (
            {"parameters": {"optim_wrapper": {"parameters": {"lr": {"value": 1}}}}},
            "nested.*\n.*flat dotted keys",
        ),
    ],
)
def test_mistakes(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_sweep(changed(tmp_path, **entries))


def test_no_config_in_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no config"):
        _ = read_sweep(changed(tmp_path, command=["${program}"])).config


@pytest.mark.parametrize("content", [None, "a: [", "- 1"])
def test_unreadable(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"Cannot read sweep file|needs `program`"):
        read_sweep(path)
