from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmkd.cli import parsers
from mmkd.compare.plan import plan_from
from mmkd.project.dataset import DataSet
from mmkd.project.fit import Fit, Setting
from mmkd.project.plans import commands_of, compare_text, readme_text, sweep_text
from mmkd.sweeps.sweep_file import read_sweep

FIT = Fit(*(Setting(value, "") for value in (320, 4, 8)), 2, Setting(30, ""), Setting(20, ""))  # type: ignore[arg-type]


def data(*splits: str) -> DataSet:
    parts: dict[str, Any] = dict.fromkeys(splits)
    return DataSet("coco", Path("my cells"), ("a",), parts, {"a": 1}, 320, (0.1, 0.2, 0.3), False, ())


@pytest.mark.parametrize(
    ("folder", "name"), [("mine", "mine"), ("my cells, 2nd", "my_cells__2nd"), (".-", "project")]
)
def test_the_plan_is_one_that_compare_reads(folder: str, name: str) -> None:
    text = compare_text(Path(folder), FIT, data("train", "val", "test"))
    plan = plan_from(yaml.safe_load(text), "other")
    assert (plan.name, plan.dataset, plan.seeds, plan.evaluate) == (name, "my cells", (0, 1, 2), "test")
    assert plan.teacher is not None
    assert plan.teacher.checkpoint == f"{folder}/work_dirs/teacher/epoch_30.pth"
    assert [(one.config, one.recommended) for one in plan.variants] == [(f"{folder}/kd.py", True)]
    assert "do not use it" not in text
    assert "evaluated on val: there is no test split" in compare_text(Path("mine"), FIT, data("train", "val"))


def test_the_sweep_is_one_that_the_tool_reads(tmp_path: Path) -> None:
    kinds = {"cls": "DistillationLoss", "box": "BoxIoULoss", "neck": "PKDLoss"}
    recipe = {"distill": {name: {"type": kind, "loss_weight": "auto"} for name, kind in kinds.items()}}
    (tmp_path / "sweep.yaml").write_text(sweep_text(Path("mine"), recipe, 0.01))
    sweep = read_sweep(tmp_path / "sweep.yaml")
    assert {name: (one["min"], one["max"]) for name, one in sweep.parameters.items()} == {
        "optim_wrapper.optimizer.lr": (0.0025, 0.04),
        "model.distill.cls.share": (0.1, 2.0),
        "model.distill.neck.share": (0.8, 16.0),
    }


def test_the_commands_are_understood() -> None:
    folder = Path("my cells")
    commands = commands_of(folder, FIT)
    for command in commands:
        name, *words = shlex.split(command)
        getattr(parsers, name.removeprefix("mmkd-"))().parse_args(words)
    assert "'my cells/work_dirs/kd/epoch_20.pth'" in commands[3]
    readme = readme_text(folder, FIT)
    assert all(f"    {command}\n" in readme for command in commands)
