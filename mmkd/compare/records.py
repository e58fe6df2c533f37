"""Records of runs: one folder with a JSON file per run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mmkd
from mmkd.durable import write_json
from mmkd.errors import UserError

RECORD = "run.json"
EVALUATION = "evaluation"
PREDICTIONS = "predictions.pkl"
PACKAGES = ("torch", "mmdet", "mmengine", "mmcv", "numpy")


@dataclass
class Record:
    """The state of a run.

    Attributes:
        member: name of the detector.
        seed: the training's seed; ``None`` for a teacher that is only evaluated.
        config: the member's config.
        command: shell command of the training; ``None`` for a teacher that is only evaluated.
        fingerprint: fingerprint of the merged config.
        trained: whether training has finished.
        checkpoint: the weights after the last epoch.
        evaluated: fingerprint of the evaluation that produced ``metrics``.
        metrics: under the evaluator's names; empty if nothing was detected.
        error: why the run failed, if it did.
        commit: the clone's commit, with ``+`` if files have changed since.
        versions: package versions.
        hardware: the machine.
        seconds: duration of the last ``train`` and ``test`` call.
    """

    member: str
    seed: int | None
    config: str
    fingerprint: str
    command: str | None = None
    trained: bool = False
    checkpoint: str | None = None
    evaluated: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run has results."""
        return self.trained and self.evaluated is not None and self.error is None


def write_record(folder: Path, record: Record) -> None:
    """Write a run's record into its folder."""
    write_json(folder / RECORD, asdict(record))


def read_record(folder: Path) -> Record | None:
    """The record in a run's folder, if any.

    Raises:
        UserError: the file is no record.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a run record ({error}); delete {folder}") from error


def provenance() -> dict[str, Any]:
    """Commit, versions and hardware, for a record."""
    versions = {"python": platform.python_version(), "mmkd": mmkd.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a fork may have another name
            versions[package] = str(getattr(__import__(package), "__version__", "unknown"))
    hardware: Mapping[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {"commit": _commit(), "versions": versions, "hardware": dict(hardware)}


@lru_cache
def _commit() -> str | None:
    root = str(Path(mmkd.__file__).resolve().parents[1])
    try:
        # Only for a clone of mmkd: an installation may lie inside another repository.
        top = _git(root, "rev-parse", "--show-toplevel").strip()
        if Path(top).resolve() != Path(root):
            return None
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        return _git(root, "rev-parse", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: str, *arguments: str) -> str:
    command = ["git", "-C", root, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
