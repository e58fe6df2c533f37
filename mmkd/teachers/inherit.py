"""Initialise parts of the student with the teacher's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.teachers.checkpoint import own_keys, read_checkpoint


def check_inherit(parts: Any, student: nn.Module) -> dict[str, str]:
    """Read ``inherit`` and check that the student has these parts.

    Args:
        parts: names of modules, like ``neck`` or ``bbox_head.cls_convs``, or of parameters, like
            ``level_embed``; or a dict of such names to the teacher's, for what it calls otherwise, like
            ``{'bbox_head': 'bbox_head', 'bbox_head.conv_cls': 'bbox_head.atss_cls'}``.
        student: the student.

    Returns:
        The names in the teacher, by those in the student.

    Raises:
        UserError: it is neither a list nor a dict of names, or the student has no module or parameter of a
            name.
    """
    if isinstance(parts, (list, tuple)):
        parts = {part: part for part in parts}
    if not isinstance(parts, Mapping) or not all(
        isinstance(name, str) for pair in parts.items() for name in pair
    ):
        raise UserError(
            "inherit must be a list of names like ['neck', 'bbox_head'], or a dict of the student's names to "
            f"the teacher's, found {parts!r}"
        )
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
    return dict(parts)


@torch.no_grad()
def inherit_weights(
    student: nn.Module, parts: Mapping[str, str], checkpoint: str
) -> tuple[list[str], list[str]]:
    """Copy the teacher's weights and buffers into the student, where name and shape match.

    Source: the inheriting strategy of FGD (https://arxiv.org/abs/2111.11837) and PGD
    (https://arxiv.org/abs/2203.05469); reference implementations: yzd-v/FGD, ChenhongyiYang/PGD.

    Args:
        student: changed in place.
        parts: names of its modules and parameters, and what the teacher calls them. Of two parts that contain
            each other the inner one's name counts.
        checkpoint: the teacher's checkpoint.

    Returns:
        The names of copied tensors, and of those in these parts that the student kept. Also logged.

    Raises:
        UserError: nothing matches.
    """
    read = read_checkpoint(checkpoint)
    taught = own_keys(read.get("state_dict", read), checkpoint)
    own = student.state_dict()
    source = {
        name: parts[part] + name[len(part) :]
        for part in sorted(parts, key=len)
        for name in own
        if f"{name}.".startswith(f"{part}.")
    }
    copied = [name for name in own if name in source and _same_shape(own[name], taught.get(source[name]))]
    kept = [name for name in source if name not in copied]
    if not copied:
        raise UserError(
            "No teacher weights match the student.",
            expected=f"weights of equal name and shape below {', '.join(parts)}",
            found="none",
            remedy="give the student the teacher's widths there, or remove `inherit`",
        )
    for name in copied:
        own[name].copy_(taught[source[name]])
    shown = ", ".join(kept[:10]) + (f", … {len(kept) - 10} more" if len(kept) > 10 else "")
    print_log(
        f"the student starts with the teacher's weights in {', '.join(parts)}: {len(copied)} "
        f"of {len(source)} tensors" + (f"; missing or different in shape: {shown}" if kept else ""),
        "current",
    )
    return copied, kept


def _same_shape(own: Tensor, taught: Tensor | None) -> bool:
    return taught is not None and own.shape == taught.shape
