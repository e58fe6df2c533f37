"""What to run in a project: the comparison's plan, the sweep file, and the commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmkd.project.dataset import DataSet
from mmkd.project.fit import Fit
from mmkd.registry import class_of


def compare_text(project: Path, fit: Fit, data: DataSet) -> str:
    """``compare.yaml``: teacher, student and distilled student over three seeds."""
    checkpoint = f"work_dirs/teacher/epoch_{fit.teacher_epochs.value}.pth"
    judged = (
        "test"
        if "test" in data.splits
        else "val: there is no test split, so do not use it to choose a recipe"
    )
    content = {
        "name": _plain_name(project),
        "dataset": data.root.resolve().name,
        "teacher": {
            name: _path(project, file)
            for name, file in (("config", "teacher.py"), ("checkpoint", checkpoint))
        },
        "student": _path(project, "student.py"),
        "variants": {"kd": {"config": _path(project, "kd.py"), "recommended": True}},
        "seeds": [0, 1, 2],
        "evaluate": "test",
    }
    return f"# Teacher, student alone and distilled, three seeds each; evaluated on {judged}.\n" + _yaml(
        content
    )


def checkpoint_line(checkpoint: str) -> str:
    """The line of ``compare.yaml`` that names the teacher's weights, without indentation."""
    return _yaml({"checkpoint": checkpoint}).strip()


def sweep_text(project: Path, recipe: Mapping[str, Any], rate: float) -> str:
    """``sweep.yaml``: learning rate and shares of the automatic weights."""

    def around(low: float, high: float) -> dict[str, Any]:
        return {"min": low, "max": high, "distribution": "log_uniform_values"}

    defaults = {name: class_of(loss).default_share for name, loss in recipe["distill"].items()}
    shares = {
        f"model.distill.{name}.share": around(share / 5, share * 4)
        for name, share in defaults.items()
        if name in ("cls", "cross", "neck")
    }
    command = ["${env}", "${interpreter}", "-m", "mmkd", "train", _path(project, "kd.py")]
    content = {
        "program": "mmkd-train",
        "method": "bayes",
        "metric": {"name": "val/bbox_mAP", "goal": "maximize"},
        "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 2},
        "parameters": {"optim_wrapper.optimizer.lr": around(rate / 4, rate * 4), **shares},
        "command": [*command, "--cfg-options", "randomness.seed=0", "${args_no_hyphens}"],
    }
    about = (
        "# Learning rate and strength of the losses, evaluated on the validation images; needs no account:\n"
    )
    return f"{about}#   mmkd-sweep {shlex.quote(_path(project, 'sweep.yaml'))} --local --count 20\n" + _yaml(
        content
    )


def readme_text(project: Path, fit: Fit) -> str:
    """``README.md``: the commands, in order."""
    commands = "\n".join(f"    {command}" for command in commands_of(project, fit))
    return (
        f"# {project.resolve().name}\n\nRun these in {Path.cwd()}; all paths are relative to "
        f"it:\n\n{commands}\n"
    )


def commands_of(project: Path, fit: Fit) -> list[str]:
    """The next commands to run, in order."""
    teacher, kd, plan, last = (
        shlex.quote((project / name).as_posix())
        for name in (
            "teacher.py",
            "kd.py",
            "compare.yaml",
            f"work_dirs/kd/epoch_{fit.student_epochs.value}.pth",
        )
    )
    return [
        f"mmkd-train {teacher}",
        f"mmkd-doctor {kd}",
        f"mmkd-train {kd}",
        f"mmkd-test {kd} {last}",
        f"mmkd-compare {plan}",
    ]


def _path(project: Path, name: str) -> str:
    return (project / name).as_posix()


def _yaml(content: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=float("inf")))


def _plain_name(project: Path) -> str:
    """A valid name for a comparison."""
    name = "".join(
        letter if letter.isalnum() or letter in "_.+-" else "_" for letter in project.resolve().name
    )
    return name.lstrip(".+-") or "project"
