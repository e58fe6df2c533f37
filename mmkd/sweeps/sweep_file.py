"""W&B sweep files: reading, checking, and the command of one trial."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkd.errors import UserError
from mmkd.yaml_files import read_mapping

METHODS = ("bayes", "random", "grid")
_VARIABLE = r"\$\{envvar:(\w+)\}"


@dataclass(frozen=True)
class SweepFile:
    """A parsed sweep file.

    Attributes:
        path: the file.
        program: the program that each trial runs.
        method: ``bayes``, ``random`` or ``grid``.
        metric: the key of the metric to optimise.
        maximize: whether a larger metric is better.
        parameters: dotted config key → W&B's description of its values.
        early_terminate: W&B's description of the stopping rule, or ``None``.
        command: the command with W&B's macros.
    """

    path: Path
    program: str
    method: str
    metric: str
    maximize: bool
    parameters: Mapping[str, Mapping[str, Any]]
    early_terminate: Mapping[str, Any] | None
    command: tuple[str, ...]

    @property
    def config(self) -> str:
        """The config to train: the command's first word ending in ``.py`` after the program."""
        words = [word for word in self.command if word.endswith(".py") and word != self.program]
        if not words:
            raise UserError(f"{self.path}: `command` names no config file to train")
        return words[0]

    @property
    def fixed_arguments(self) -> list[str]:
        """The arguments after the config that every trial has, whatever the parameters."""
        after = self.command[self.command.index(self.config) + 1 :]
        words = [_with_environment(word) for word in after if word not in _macros("", {})]
        pairs = zip(words, [*words[1:], "--"], strict=False)
        return [word for word, following in pairs if word != "--cfg-options" or following[:2] != "--"]

    def command_for(self, values: Mapping[str, Any]) -> list[str]:
        """The command of a trial, with macros replaced as W&B's agent does.

        Args:
            values: the parameters' values.
        """
        lists = _macros(self.program, values)
        words: list[str] = []
        for word in self.command:
            if word in lists:
                words += lists[word]
            else:
                words.append(_with_environment(word))
        return words


def _with_environment(word: str) -> str:
    return re.sub(_VARIABLE, lambda found: os.environ.get(found[1], found[1]), word)


def _macros(program: str, values: Mapping[str, Any]) -> dict[str, list[str]]:
    pairs = {key: f"{key}={value}" for key, value in values.items()}
    flags = {key: f"--{pairs[key]}" for key in values if not isinstance(values[key], bool)}
    flags |= {key: f"--{key}" for key, value in values.items() if value is True}
    return {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [program],
        "${args}": [f"--{pair}" for pair in pairs.values()],
        "${args_no_hyphens}": list(pairs.values()),
        "${args_no_boolean_flags}": [flags[key] for key in values if key in flags],
        "${args_json}": [json.dumps(dict(values))],
    }


def read_sweep(path: str | Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        UserError: the file is missing, broken, or not a sweep of dotted keys.
    """
    path = Path(path)
    content = read_mapping(path, "sweep file", "a YAML file in the format of `wandb sweep`")
    for key in ("program", "method", "metric", "parameters", "command"):
        if key not in content:
            raise UserError(f"{path}: a sweep file needs `{key}`; see configs/sweeps/atss_bayes.yaml")
    if content["method"] not in METHODS:
        raise UserError(f"{path}: method must be one of {', '.join(METHODS)}, found {content['method']!r}")
    metric = content["metric"]
    if (
        not isinstance(metric, dict)
        or "name" not in metric
        or metric.get("goal") not in ("maximize", "minimize")
    ):
        raise UserError(f"{path}: metric must be {{name: …, goal: maximize|minimize}}, found {metric!r}")
    _check_parameters(path, content["parameters"])
    for word in map(str, content["command"]):
        if re.fullmatch(r"\$\{[^:}]*\}", word) and word not in _macros("", {}):
            raise UserError(
                f"{path}: `command` has unknown macro {word}; valid: {', '.join(_macros('', {}))}"
            )
    return SweepFile(
        path=path,
        program=content["program"],
        method=content["method"],
        metric=metric["name"],
        maximize=metric["goal"] == "maximize",
        parameters=content["parameters"],
        early_terminate=content.get("early_terminate"),
        command=tuple(str(word) for word in content["command"]),
    )


def _check_parameters(path: Path, parameters: Any) -> None:
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{path}: `parameters` is empty")
    for key, description in parameters.items():
        if not isinstance(description, dict) or "parameters" in description:
            raise UserError(
                f"{path}: parameter {key} is nested; it would replace all of {key} in the config.",
                expected="flat dotted keys, like optim_wrapper.optimizer.lr: {min: 1.0e-4, max: 1.0e-2}",
                found=f"{key}: {description}",
                remedy="write each inner parameter with its full dotted key",
            )
        if not ({"value", "values"} & set(description) or {"min", "max"} <= set(description)):
            raise UserError(f"{path}: parameter {key} needs `values`, `value`, or `min` and `max`")
