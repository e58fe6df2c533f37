"""Base class of all distillation losses."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd.errors import UserError, check_arguments, naming
from mmkd.functional.checks import check_choice, check_number
from mmkd.losses.automatic import DEFAULT_SHARE, AutoWeight
from mmkd.losses.turns import Turns
from mmkd.registry import MODELS, class_of
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid


class DistillLoss(nn.Module):
    """A term of ``distill=dict(<name>=dict(type=…))``.

    A subclass lists in ``needs`` the outputs that it reads; the teacher computes only those.

    Args:
        loss_weight: factor ≥ 0 of the term. At 0 the term is not computed. In a config it may be ``'auto'``,
            optionally with ``share`` (by default ``default_share``): the detector then sets the weight, see
            `AutoWeight`, and builds the loss with 1. Losses whose published weight suits one image size are
            ``'auto'`` in a config without a weight (``auto_by_default``).
        valid: which priors count, for losses on priors. ``'image'``: priors inside their image; ``'pad'``:
            also priors in the image's own padding, up to ``pad_shape``, as in mmdet's anchor heads;
            ``'loss'``: priors with a weight in the student's classification loss, i.e. ``'pad'`` without the
            anchors that its assigner ignores.

    Raises:
        UserError: the weight is not a number ≥ 0, or ``valid`` is unknown.
    """

    needs: frozenset[Need]
    of_student: frozenset[Need] = frozenset()  # the subset of `needs` read only from the student
    tower_layers = 0  # tower layers that both heads must have; with "towers"
    of_objects = False  # whether it reads the annotated objects of the images
    pairs_priors = True  # whether it compares each of the student's priors with one of the teacher's
    auto_by_default = False  # whether a config without `loss_weight` means 'auto'
    default_share = DEFAULT_SHARE  # of an automatic weight
    ignores = False  # whether it passes boxes to ignore to the student's own losses; with "own_losses"

    def __init__(self, loss_weight: float = 1.0, valid: Valid = "image") -> None:
        super().__init__()
        with naming(self):
            check_choice("valid", valid, Valid)
            check_number("[0, inf)", loss_weight=loss_weight)
        self.valid = valid
        self.loss_weight = loss_weight
        self.auto: AutoWeight | None = None
        self.turns: Turns | None = None

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Raise `UserError` if the loss makes no sense for this pair of heads."""

    def adapt(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Build layers that depend on the pair, e.g. a 1×1 convolution between two widths.

        They train with the student but are not in its checkpoints; `DistillStateHook` saves them.
        """

    @property
    def asks(self) -> frozenset[Need]:
        """`needs`, and what ``valid`` requires."""
        of_valid: dict[Valid, frozenset[Need]] = {
            "pad": frozenset({"padding"}),
            "loss": frozenset({"label_weights"}),
        }
        return self.needs | of_valid.get(self.valid, frozenset())

    @property
    def depends_on_assignment(self) -> bool:
        """Whether the loss depends on the objects to which the student's assigner matches its priors."""
        return bool(self.asks & {"labels", "label_weights", "quality_targets"})

    @property
    def depends_on_objects(self) -> bool:
        """Whether the loss depends on the objects of an image, through annotations or through assignment."""
        return self.of_objects or self.depends_on_assignment

    @abstractmethod
    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss, a scalar."""


def warn_of_sigmoids(loss: DistillLoss, activation: str, student: HeadSpec) -> None:
    """Warn if a loss treats softmax logits as one binary question per class."""
    if activation == "sigmoid" and not student.use_sigmoid:
        print_log(
            f"{type(loss).__name__}: activation='sigmoid' with a head that uses a softmax with "
            "background; activation='softmax' matches the head's training",
            "current",
            logging.WARNING,
        )


def registered_losses() -> list[str]:
    """The valid values of ``type`` for a distillation loss."""
    return sorted(
        name
        for name, entry in MODELS.module_dict.items()
        if isinstance(entry, type) and issubclass(entry, DistillLoss)
    )


def build_losses(losses: Mapping[str, Any], path: str) -> nn.ModuleDict:
    """Build losses by name.

    Args:
        losses: name → config.
        path: their place in the config, for messages.

    Raises:
        UserError: there are no losses, or a type or an option is unknown; lists the valid ones.
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
