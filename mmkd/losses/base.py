"""What every distillation loss has in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mmkd.errors import UserError, check_arguments, user_error
from mmkd.registry import MODELS, class_of
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid


class DistillLoss(nn.Module):
    """A term of ``distill=dict(<name>=dict(type=…))``.

    A subclass lists in ``needs`` the parts of the outputs that it reads; the
    teacher computes those and no others.

    Args:
        loss_weight: factor ≥ 0 of the term. At 0 the term is not computed.
        valid: which priors count, for losses on priors. ``'image'``: those on their image; ``'pad'``: also
            those in its own padding, up to ``pad_shape``, as in mmdet's anchor heads; ``'loss'``: those with
            a weight in the student's classification loss, which is ``'pad'`` without the anchors that its
            assigner ignores.

    Raises:
        UserError: the weight is negative or no number, or there is no such choice.
    """

    needs: frozenset[Need]
    of_student: frozenset[Need] = frozenset()  # of these, what it reads of the student's outputs alone
    tower_layers = 0  # of both heads, that it needs; with "towers"

    def __init__(self, loss_weight: float = 1.0, valid: Valid = "image") -> None:
        super().__init__()
        if valid not in get_args(Valid):
            choices = ", ".join(get_args(Valid))
            raise UserError(f"{type(self).__name__}: valid must be one of {choices}, found {valid!r}")
        self.valid = valid
        if not isinstance(loss_weight, (int, float)) or not 0 <= loss_weight < math.inf:
            raise UserError(f"{type(self).__name__}: loss_weight must be a number ≥ 0, found {loss_weight!r}")
        self.loss_weight = loss_weight

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Raise `UserError` if the loss makes no sense for this pair of heads."""

    def adapt(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Build layers that depend on the pair, e.g. a 1×1 convolution between two widths.

        They train with the student and are in none of its checkpoints; `DistillStateHook` keeps them.
        """

    @property
    def asks(self) -> frozenset[Need]:
        """`needs`, and what ``valid`` needs."""
        of_valid: dict[Valid, frozenset[Need]] = {
            "pad": frozenset({"padding"}),
            "loss": frozenset({"label_weights"}),
        }
        return self.needs | of_valid.get(self.valid, frozenset())

    @abstractmethod
    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss, a scalar."""


def is_object(student: DenseOutputs, context: DistillContext) -> Tensor:
    """Which priors the student's assigner gives an object, (N,) bool."""
    assert context.labels_N is not None
    return (context.labels_N >= 0) & (context.labels_N < student.spec.num_classes)


def check_choices(loss: DistillLoss, **options: tuple[str, Any]) -> None:
    """Raise `UserError` unless each option is one of its choices.

    Args:
        loss: whose options they are.
        **options: by name, the value and the `Literal` of its choices.
    """
    for name, (value, choices) in options.items():
        if value not in get_args(choices):
            valid = ", ".join(get_args(choices))
            raise UserError(f"{type(loss).__name__}: {name} must be one of {valid}, found {value!r}")


def objects_of(student: DenseOutputs, context: DistillContext) -> Tensor:
    """How many priors of the batch are assigned an object, at least one for each image: mmdet's divisor."""
    assert student.cls_logits is not None or context.labels_N is not None
    return image_counts(student, is_object(student, context), context.num_images).clamp(min=1).sum()


def image_of_prior(levels: Sequence[Tensor], num_base_priors: Sequence[int]) -> Tensor:
    """The image of each prior, (N,), in the order of levels, images, positions.

    Args:
        levels: per level, maps B×…×H×W.
        num_base_priors: per level, the priors at a position.
    """
    return torch.cat(
        [
            torch.arange(level.shape[0], device=level.device).repeat_interleave(
                level.shape[-2] * level.shape[-1] * A
            )
            for level, A in zip(levels, num_base_priors)
        ]
    )


def image_counts(student: DenseOutputs, chosen_N: Tensor, images: int) -> Tensor:
    """How many of the chosen priors are of each image, (B,)."""
    levels = student.cls_logits or student.bbox_pred or student.boxes or next(iter(student.extra.values()))
    image_N = image_of_prior(levels, student.spec.num_base_priors)
    return image_N[chosen_N].bincount(minlength=images)


def on_levels_with_objects(student: DenseOutputs, context: DistillContext) -> Tensor:
    """Which priors are on a level on which an image of this process has an object, (N,) bool."""
    levels = student.cls_logits or student.bbox_pred or student.boxes or next(iter(student.extra.values()))
    counts = [
        level.shape[0] * level.shape[2] * level.shape[3] * A
        for level, A in zip(levels, student.spec.num_base_priors)
    ]
    parts = is_object(student, context).split(counts)
    return torch.cat([part.any().expand(len(part)) for part in parts])


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
                f"{path} has a loss whose name cannot be one.",
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
