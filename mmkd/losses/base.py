"""What every distillation loss has in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmkd.errors import UserError, check_arguments, user_error
from mmkd.registry import MODELS, class_of
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need


class DistillLoss(nn.Module):
    """A term of ``distill=dict(<name>=dict(type=…))``.

    A subclass lists in ``needs`` the parts of the outputs that it reads; the
    teacher computes those and no others.

    Args:
        loss_weight: factor ≥ 0 of the term. At 0 the term is not computed.

    Raises:
        UserError: the weight is negative or no number.
    """

    needs: frozenset[Need]
    of_student: frozenset[Need] = frozenset()  # of these, what it reads of the student's outputs alone
    tower_layers = 0  # of both heads, that it needs; with "towers"

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        if not isinstance(loss_weight, (int, float)) or not 0 <= loss_weight < math.inf:
            raise UserError(f"{type(self).__name__}: loss_weight must be a number ≥ 0, found {loss_weight!r}")
        self.loss_weight = loss_weight

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Raise `UserError` if the loss makes no sense for this pair of heads."""

    def adapt(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Build layers that depend on the pair, e.g. a 1×1 convolution between two widths.

        They train with the student and are in none of its checkpoints; `DistillStateHook` keeps them.
        """

    @abstractmethod
    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss, a scalar."""


def is_object(student: DenseOutputs, context: DistillContext) -> Tensor:
    """Which priors the student's assigner gives an object, (N,) bool."""
    assert context.labels_N is not None
    return (context.labels_N >= 0) & (context.labels_N < student.spec.num_classes)


def registered_losses() -> list[str]:
    """The names that may stand as ``type`` of a distillation loss."""
    return sorted(
        name
        for name, entry in MODELS.module_dict.items()
        if isinstance(entry, type) and issubclass(entry, DistillLoss)
    )


def build_losses(losses: Mapping[str, Any], path: str) -> nn.ModuleDict:
    """Build losses by name.

    Args:
        losses: name → config.
        path: where they stand in the config, for messages.

    Raises:
        UserError: there is none, a type is unknown, or an option is; lists the valid ones.
    """
    example = f"{path}=dict(cls=dict(type='DistillationLoss'))"
    if not isinstance(losses, Mapping) or not losses:
        raise user_error(
            f"`{path}` names no loss.",
            expected=f"at least one, like {example}",
            found=repr(losses),
            remedy="add a loss, or train the student alone with its stock config",
        )
    for name, cfg in losses.items():
        if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise user_error(
                f"{path} has a loss of which the name cannot be one.",
                expected=f"letters, digits and _, as in {example}",
                found=repr(name),
                remedy="choose another",
            )
        loss = class_of(cfg)
        if not (isinstance(cfg, Mapping) and isinstance(loss, type) and issubclass(loss, DistillLoss)):
            raise user_error(
                f"{path}.{name} is no distillation loss.",
                expected=f"type, one of: {', '.join(registered_losses())}",
                found=repr(cfg.get("type") if isinstance(cfg, Mapping) else cfg),
                remedy=f"correct the type, as in {example}",
            )
        check_arguments(f"{path}.{name}", set(cfg) - {"type", "_scope_"}, loss)
    return nn.ModuleDict({name: MODELS.build(cfg) for name, cfg in losses.items()})
