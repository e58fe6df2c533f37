"""`CrossKDLoss`: the student's features through the teacher's head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_bool, check_whole
from mmkd.functional.crossed import match_statistics
from mmkd.losses.base import DistillLoss, build_losses
from mmkd.registry import MODELS
from mmkd.structures import OF_CONTEXT, DenseOutputs, DistillContext, HeadSpec, Levels, by_place


@MODELS.register_module()
class CrossKDLoss(DistillLoss):
    r"""Cross-head distillation: losses between the teacher's outputs and crossed ones.

    The student's features after ``layer`` layers of its head's towers (``cls_convs`` and ``reg_convs``) pass
    through the remaining layers of the frozen teacher's head. Any losses on outputs then compare the result
    with the teacher's own outputs; the student's own predictions learn only from the ground truth:

    .. math:: \lambda \sum_j L_j(h^t_{>i}(\mathrm{ReLU}(\mathrm{align}(f^s_i))),\; h^t(f^t))

    where align matches each channel's mean and standard deviation over the batch to the teacher's.

    Both sides have the teacher's priors. If the student's base priors differ, the losses must not read its
    assigned objects (``region='foreground'``, ``normalizer='foreground'``, ``valid='loss'``).

    Source: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024
    (https://arxiv.org/abs/2306.11369). Reference implementation: jbwang1997/CrossKD. It means to take the
    features before the activation, but its activation works in place, so the published figures use activated
    features; so do we. It uses `BCKDLoss` for all heads, `BoxIoULoss` for ATSS, RetinaNet and FCOS,
    `LocalizationDistillationLoss` for GFL and `QualityLoss` for ATSS only, with the options in
    ``docs/parity.md``.

    Args:
        losses: name → config of a loss on outputs, as in ``distill``.
        layer: i ≥ 1; 3 of 4 in the reference.
        align: match the statistics of the features; the two towers must be equally wide.
        loss_weight: λ ≥ 0.

    Raises:
        UserError: ``losses`` is empty or one of them reads features, or an option is out of its range.
    """

    # Better than 0.5 on both splits of configs/compare/*_methods_shares.yaml, and for FCOS.
    default_share = 4.0

    def __init__(
        self,
        losses: Mapping[str, Any],
        layer: int = 3,
        align: bool = True,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        with naming(self):
            check_whole(1, layer=layer)
            check_bool(align=align)
        self.layer = self.tower_layers = layer
        self.align = align
        self.losses: nn.ModuleDict = build_losses(losses, "losses")
        inner = frozenset(need for term in self.terms.values() for need in term.asks)
        wrong = inner & {"feats", "towers", "layers"}
        if wrong:
            raise UserError(
                "CrossKDLoss only compares head outputs.",
                expected="losses on class logits, boxes or further outputs",
                found=f"a loss that needs {', '.join(sorted(wrong))}",
                remedy="move that loss out of CrossKDLoss, into `distill`",
            )
        self.of_objects = any(term.of_objects for term in self.terms.values())
        self.pairs_priors = any(term.depends_on_assignment for term in self.terms.values())
        self.parts = inner - OF_CONTEXT
        self.needs = inner | {"towers", "layers"}

    @property
    def terms(self) -> dict[str, DistillLoss]:
        """The losses by name."""
        return cast(dict[str, DistillLoss], dict(self.losses.items()))

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Check each of its losses against two heads of the teacher's kind."""
        for term in self.terms.values():
            term.check(teacher, teacher)

    def adapt(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Adapt each of its losses."""
        for term in self.terms.values():
            term.adapt(teacher, teacher)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted sum of the losses, a float32 scalar.

        Args:
            student: outputs with towers.
            teacher: outputs with towers, and the outputs that the losses read.
            context: the batch.
        """
        assert context.crossed is not None
        towers = {
            name: self._aligned(layers[self.layer - 1], teacher.towers[name][self.layer - 1])
            for name, layers in student.towers.items()
        }
        crossed = context.crossed(self.layer, towers, self.parts)
        values = [
            term(crossed, teacher, _for_priors_of(teacher, student, context.counting(term.valid)))
            for term in self.terms.values()
        ]
        total = torch.stack(values).sum()
        return self.loss_weight * total

    def _aligned(self, student: Levels, teacher: Levels) -> Levels:
        if student[0].shape[1] != teacher[0].shape[1]:
            raise UserError(
                "CrossKD needs heads with towers of equal width.",
                expected=f"bbox_head.feat_channels={teacher[0].shape[1]} (the teacher's)",
                found=f"{student[0].shape[1]} (the student's)",
                remedy="use that width in the student's head, or choose a loss on the head's outputs",
            )
        if not self.align:
            return student
        with torch.autocast(student[0].device.type, enabled=False):
            return tuple(F.relu(match_statistics(s, t)) for s, t in zip(student, teacher))


def _for_priors_of(teacher: DenseOutputs, student: DenseOutputs, context: DistillContext) -> DistillContext:
    """The context with the teacher's priors in ``valid_N``: those at places where the student's count."""
    own, taught = student.spec.num_base_priors, teacher.spec.num_base_priors
    if own == taught:
        return context
    sizes = [(level.shape[-2], level.shape[-1]) for level in teacher.feats]
    parts = by_place(context.valid_N, sizes, own, context.num_images)
    valid = [part.any(dim=2, keepdim=True).expand(-1, -1, A).flatten() for part, A in zip(parts, taught)]
    return replace(context, valid_N=torch.cat(valid))
