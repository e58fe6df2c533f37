"""Facts about a teacher, for the log and W&B."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

_SHOWN = 6


def describe(model: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """Log what the teacher is and which parts of it are used.

    Args:
        model: the detector, reduced to the parts that are computed.
        found: its source and what was done to it: ``config``, ``checkpoint``, ``classes``, ``left_out``,
            ``batch_norm_folded``, ``pixels_renormalized``.

    Returns:
        These facts, the detector's class and its number of parameters.
    """
    facts: dict[str, Any] = {
        "detector": type(model).__name__,
        "parameters_computed": sum(p.numel() for p in model.parameters()),
        **found,
    }
    names = facts["classes"]
    classes = "no class names" if names is None else "classes " + ", ".join(names[:_SHOWN])
    if names is not None and len(names) > _SHOWN:
        classes += f", … {len(names) - _SHOWN} more"
    print_log(
        f"teacher: {facts['detector']}, {facts['parameters_computed'] / 1000000.0:.2f} M "
        f"parameters used; checkpoint {facts['checkpoint']}; {classes}"
        + (f"; not computed: {', '.join(facts['left_out'])}" if facts["left_out"] else "")
        + ("; pixels re-normalised" if facts["pixels_renormalized"] else ""),
        logger="current",
    )
    if facts["checkpoint"] is None:
        print_log("the teacher has no checkpoint: its weights are random", "current", level=logging.WARNING)
    return facts
