"""Base class of all distillation losses."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd.errors import UserError, check_arguments
from mmkd.functional.checks import check_choice, check_not_negative
from mmkd.losses.automatic import AutoWeight
from mmkd.registry import MODELS, class_of
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid


class DistillLoss(nn.Module):
    """A term of ``distill=dict(<name>=dict(type=…))``.

    A subclass lists in ``needs`` the parts of the outputs that it reads; the
    teacher computes those and no others.

    Args:
        loss_weight: factor ≥ 0 of the term. At 0 the term is not computed. In a config it may be ``'auto'``,
            with ``share`` beside it: the detector then chooses it, see `AutoWeight`, and the loss itself is
            built with 1.
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
    of_objects = False  # whether it reads the annotated objects of the images
    ignores = False  # whether it gives the student's own losses boxes to ignore; with "own_losses"

    def __init__(self, loss_weight: float = 1.0, valid: Valid = "image") -> None:
        super().__init__()
        with naming(self):
            check_choice("valid", valid, Valid)
            check_not_negative("loss_weight", loss_weight)
        self.valid = valid
        self.loss_weight = loss_weight
        self.auto: AutoWeight | None = None

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

    @property
    def depends_on_objects(self) -> bool:
        """Whether it reads which objects an image has, from annotations or by what they are assigned to."""
        by_assignment: frozenset[Need] = frozenset({"labels", "label_weights", "quality_targets"})
        return self.of_objects or bool(self.asks & by_assignment)

    @abstractmethod
    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss, a scalar."""


@contextmanager
def naming(loss: DistillLoss) -> Iterator[None]:
    """Make `UserError` of a ValueError about an option, with the name of the loss."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{type(loss).__name__}: {error}") from None


def warn_of_sigmoids(loss: DistillLoss, activation: str, student: HeadSpec) -> None:
    """Say in the log that a loss takes the logits of a softmax for one question per class."""
    if activation == "sigmoid" and not student.use_sigmoid:
        print_log(
            f"{type(loss).__name__}: activation='sigmoid' with a head that uses a softmax with "
            "background; activation='softmax' matches the head's training",
            "current",
            logging.WARNING,
        )


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
        raise UserError(
            f"`{path}` has no losses.",
            expected=f"at least one loss, like {example}",
            found=repr(losses),
            remedy="add a loss, or train the student alone with its stock config",
        )
    for name, cfg in losses.items():
        if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise UserError(
                f"Invalid loss name in {path}.",
                expected=f"letters, digits and _, as in {example}",
                found=repr(name),
                remedy="choose another",
            )
        loss = class_of(cfg)
        if not (isinstance(cfg, Mapping) and isinstance(loss, type) and issubclass(loss, DistillLoss)):
            raise UserError(
                f"{path}.{name} is not a distillation loss.",
                expected=f"type, one of: {', '.join(registered_losses())}",
                found=repr(cfg.get("type") if isinstance(cfg, Mapping) else cfg),
                remedy=f"correct the type, as in {example}",
            )
        check_arguments(f"{path}.{name}", set(cfg) - {"type", "_scope_"}, loss)
    return nn.ModuleDict({name: MODELS.build(cfg) for name, cfg in losses.items()})
