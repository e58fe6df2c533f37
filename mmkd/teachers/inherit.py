"""Initialise parts of the student with the teacher's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from mmkd.errors import UserError
from mmkd.teachers.checkpoint import own_keys, read_checkpoint


def check_inherit(parts: Any, student: nn.Module) -> tuple[str, ...]:
    """Return the parts of ``inherit`` if the student has them.

    Args:
        parts: names of modules, like ``neck`` or ``bbox_head.cls_convs``, or of parameters, like
            ``level_embed``.
        student: the student.

    Raises:
        UserError: it is not a list of names, or a name is neither a module nor a parameter.
    """
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"inherit must be a list of names like ['neck', 'bbox_head'], found {parts!r}")
    known = {name for named in (student.named_modules(), student.named_parameters()) for name, _ in named}
    strange = [part for part in parts if part not in known]
    if strange:
        raise UserError(
            f"`inherit` names unknown student modules: {', '.join(strange)}.",
            expected=f"any of {', '.join((name for name, _ in student.named_children()))}, or submodules "
            "of them",
            found=", ".join(strange),
            remedy="correct the name",
        )
    return tuple(parts)


@torch.no_grad()
def inherit_weights(student: nn.Module, parts: Sequence[str], checkpoint: str) -> tuple[list[str], list[str]]:
    """Copy the teacher's weights and buffers into the student, where name and shape match.

    Source: the inheriting strategy of FGD (https://arxiv.org/abs/2111.11837) and PGD
    (https://arxiv.org/abs/2203.05469); reference implementations: yzd-v/FGD, ChenhongyiYang/PGD.

    Args:
        student: changed in place.
        parts: names of its modules and parameters.
        checkpoint: the teacher's checkpoint.

    Returns:
        The names of copied tensors, and of those in these parts that the student kept. Also logged.

    Raises:
        UserError: nothing matches.
    """
    read = read_checkpoint(checkpoint)
    taught = own_keys(read.get("state_dict", read), checkpoint)
    own = {
        name: tensor
        for name, tensor in student.state_dict().items()
        if any(f"{name}.".startswith(f"{part}.") for part in parts)
    }
    copied = [name for name, tensor in own.items() if name in taught and taught[name].shape == tensor.shape]
    kept = [name for name in own if name not in copied]
    if not copied:
        raise UserError(
            "No teacher weights match the student.",
            expected=f"weights of equal name and shape below {', '.join(parts)}",
            found="none",
            remedy="give the student the teacher's widths there, or remove `inherit`",
        )
    for name in copied:
        own[name].copy_(taught[name])
    shown = ", ".join(kept[:10]) + (f", … {len(kept) - 10} more" if len(kept) > 10 else "")
    print_log(
        f"the student starts with the teacher's weights in {', '.join(parts)}: {len(copied)} "
        f"of {len(own)} tensors" + (f"; missing or different in shape: {shown}" if kept else ""),
        "current",
    )
    return copied, kept
