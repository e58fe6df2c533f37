"""Parameters that W&B's agent passes to a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from mmkd.errors import UserError


def in_sweep() -> bool:
    """Whether W&B's agent or the local controller started this process."""
    return in_hosted_sweep() or bool(os.environ.get("MMKD_SWEEP"))


def in_hosted_sweep() -> bool:
    """Whether W&B's agent started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def run_id() -> str | None:
    """The run id given by W&B's agent; it stays the same after a preemption."""
    return os.environ.get("WANDB_RUN_ID") if in_hosted_sweep() else None


def parameters() -> dict[str, Any]:
    """This run's parameter values, from the file that W&B's agent writes; empty without one.

    Raises:
        UserError: the file cannot be read.
    """
    file = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not file:
        return {}
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        return {key: entry["value"] for key, entry in content.items() if key != "wandb_version"}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            "Cannot read the parameters of this sweep run.",
            expected="a YAML file of the W&B agent at WANDB_SWEEP_PARAM_PATH",
            found=f"{file} ({type(error).__name__}: {error})",
            remedy="start the run with `wandb agent`, or unset WANDB_SWEEP_PARAM_PATH",
        ) from error
