"""`BoxIoULoss`: the student's boxes towards the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmkd.errors import UserError
from mmkd.functional.boxes import Overlap, box_iou_loss
from mmkd.losses.base import (
    DistillLoss,
    check_choices,
    is_object,
    objects_of,
    on_levels_with_objects,
)
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, Need, Valid

Region = Literal["teacher", "foreground", "teacher_foreground", "disagreement"]
Normalizer = Literal["region", "foreground", "centerness"]

_NEEDS: dict[str, frozenset[Need]] = {
    "disagreement": frozenset({"boxes", "cls_logits"}),
    "teacher": frozenset({"boxes", "cls_logits"}),
    "foreground": frozenset({"boxes", "labels"}),
    "teacher_foreground": frozenset({"boxes", "cls_logits", "labels"}),
}


@MODELS.register_module()
class BoxIoULoss(DistillLoss):
    r"""1 − GIoU between the boxes that student and teacher decode from the same prior.

    .. math:: \lambda \, \frac{\sum_i w_i \, (1 - \mathrm{GIoU}(b^s_i, b^t_i))}{\sum_i w_i}

    over the priors i of the batch outside the padding; the divisor is averaged over processes, as gradients
    are. Boxes are compared after decoding: any two box coders will do, and the value is in [0, 2 λ).

    The reference implementations divide otherwise, count other priors and weigh them otherwise; the options
    that give their values are in ``docs/parity.md``.

    Many priors of a low score can outweigh the few of a high one in both sums; ``min_score`` leaves them
    out.

    Source: GIoU: Rezatofighi et al., 2019 (https://arxiv.org/abs/1902.09630). As a distillation loss weighted
    by the teacher's score: the box part of prediction mimicking in CrossKD, Wang et al., 2024
    (https://arxiv.org/abs/2306.11369), and its implementation (jbwang1997/CrossKD, ``loss_reg_kd`` of
    ``crosskd_atss.py``), which divides by the number of assigned priors instead and has λ = 1 there.

    Args:
        loss_weight: λ ≥ 0.
        region: :math:`w_i`. ``'teacher'``: the teacher's highest class score; ``'foreground'``: 1 for priors
            to which the student's assigner gives an object, else 0; ``'teacher_foreground'``: their product;
            ``'disagreement'``: the largest difference of a class's score between the two,
            :math:`\max_c |\sigma(z^t_{ic}) - \sigma(z^s_{ic})|`, without gradient (the box term of BCKD).
        overlap: ``'giou'``; ``'iou'``, which has no gradient where the boxes do not meet; ``'log_iou'``, that
            is :math:`-\log \mathrm{IoU}`; or ``'diou'``.
        min_score: 0 ≤ s < 1. Priors with :math:`w_i < s` are left out of both sums, which also saves their
            computation. At 0 none is.
        normalizer: the divisor. ``'region'``: as above; ``'foreground'``: the number of priors that are
            assigned an object, at least one for each image; ``'centerness'``: the sum of the centerness
            targets of these, of a student whose head has a ``loss_centerness``.
        every_level: count the levels of the pyramid on which no image of the process has an object; the
            reference implementation of BCKD leaves them out.
        valid: which priors count, see `DistillLoss`.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        loss_weight: float = 2.0,
        region: Region = "teacher",
        overlap: Overlap = "giou",
        min_score: float = 0.0,
        normalizer: Normalizer = "region",
        every_level: bool = True,
        valid: Valid = "image",
    ) -> None:
        super().__init__(loss_weight, valid)
        check_choices(
            self, overlap=(overlap, Overlap), region=(region, Region), normalizer=(normalizer, Normalizer)
        )
        if not isinstance(min_score, (int, float)) or not 0 <= min_score < 1:
            raise UserError(f"BoxIoULoss: min_score must be a number ≥ 0 and below 1, found {min_score!r}")
        self.region = region
        self.overlap = overlap
        self.min_score = min_score
        self.normalizer = normalizer
        self.every_level = every_level
        self.needs = _NEEDS[region]
        if normalizer == "foreground" or not every_level:
            self.needs |= {"labels"}
        if normalizer == "centerness":
            self.needs |= {"quality_targets"}

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with boxes.
            teacher: outputs with boxes of the same layout, and class logits if the region is by score.
            context: the batch.
        """
        weight_N = context.valid_N.float()
        if "foreground" in self.region:
            weight_N = weight_N * is_object(student, context)
        if "teacher" in self.region:
            weight_N = weight_N * teacher.top_scores().detach()
        if self.region == "disagreement":
            weight_N = weight_N * largest_difference(student, teacher)
        if not self.every_level:
            weight_N = weight_N * on_levels_with_objects(student, context)
        if self.min_score > 0:
            weight_N = weight_N * (weight_N >= self.min_score)
        divisor = self._divisor(weight_N, student, context)
        divisor = context.mean_over_processes(divisor).clamp(min=torch.finfo(torch.float32).eps)
        student_N4, teacher_N4 = student.flat_boxes(), teacher.flat_boxes()
        if "foreground" in self.region or self.min_score > 0:  # few are left
            rows = weight_N.nonzero().squeeze(1)
            student_N4, teacher_N4, weight_N = student_N4[rows], teacher_N4[rows], weight_N[rows]
        total = (weight_N * box_iou_loss(student_N4, teacher_N4, self.overlap)).sum()
        return self.loss_weight * total / divisor

    def _divisor(self, weight_N: Tensor, student: DenseOutputs, context: DistillContext) -> Tensor:
        if self.normalizer == "foreground":
            return objects_of(student, context)
        if self.normalizer == "centerness":
            assert context.quality_sum is not None
            return context.quality_sum
        return weight_N.sum()


@torch.no_grad()
def largest_difference(student: DenseOutputs, teacher: DenseOutputs) -> Tensor:
    """The largest difference of a class's score of each prior, (N,) in [0, 1], without gradient."""
    scores = []
    for outputs in (student, teacher):
        logits_NK = outputs.flat_cls_logits()
        logits_NK = logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32))
        probability_NK = logits_NK.sigmoid() if outputs.spec.use_sigmoid else logits_NK.softmax(dim=1)
        scores.append(probability_NK[:, : outputs.spec.num_classes])
    return (scores[0] - scores[1]).abs().amax(dim=1)
