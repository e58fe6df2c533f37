"""`BoxIoULoss`: pulls the student's boxes to the teacher's."""

from __future__ import annotations

from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.boxes import Overlap, box_iou_loss
from mmkd.functional.checks import check_choice, check_number
from mmkd.losses.row_base import Normalizer, Region, RowLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, Need, Valid


@MODELS.register_module()
class BoxIoULoss(RowLoss):
    r"""1 − GIoU between the boxes that student and teacher decode from the same prior.

    .. math:: \lambda \, \frac{\sum_i w_i \, (1 - \mathrm{GIoU}(b^s_i, b^t_i))}{\sum_i w_i}

    over the priors i of the batch outside the padding; the divisor is averaged over processes, like
    gradients. Boxes are compared after decoding, so the heads may use different box coders. The value is in
    [0, 2 λ).

    The reference implementations use other divisors, priors and weights; ``docs/parity.md`` lists the options
    that reproduce them.

    Many low-score priors can outweigh a few high-score ones in both sums; ``min_score`` removes them.

    Source: GIoU: Rezatofighi et al., 2019 (https://arxiv.org/abs/1902.09630). As a distillation loss weighted
    by the teacher's score: the box part of prediction mimicking in CrossKD, Wang et al., 2024
    (https://arxiv.org/abs/2306.11369). Its implementation (jbwang1997/CrossKD, ``loss_reg_kd`` of
    ``crosskd_atss.py``) divides by the number of assigned priors instead, with λ = 1.

    Args:
        loss_weight: λ ≥ 0.
        region: :math:`w_i`, see `RowLoss`; ``'disagreement'`` is the box term of BCKD.
        overlap: ``'giou'``; ``'iou'``, which has no gradient for disjoint boxes; ``'log_iou'``, i.e.
            :math:`-\log \mathrm{IoU}`; or ``'diou'``.
        min_score: 0 ≤ s < 1. Priors with :math:`w_i < s` are left out of both sums and not computed. 0 keeps
            all.
        normalizer: the divisor, see `RowLoss`.
        every_level: also count pyramid levels on which no image of the process has an object; BCKD's
            reference implementation skips them.
        valid: which priors count, see `RowLoss`.

    Raises:
        UserError: an option is out of its range.
    """

    reads: frozenset[Need] = frozenset({"boxes"})

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
        super().__init__(loss_weight, region, normalizer, valid, every_level=every_level, min_score=min_score)
        with naming(self):
            check_number("[0, 1)", min_score=min_score)
            check_choice("overlap", overlap, Overlap)
        self.overlap = overlap

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with boxes.
            teacher: outputs with boxes of the same layout, and class logits if the region uses scores.
            context: the batch.
        """
        rows = self.rows(student, teacher, context)
        value_N = box_iou_loss(rows.of(student.flat_boxes()), rows.of(teacher.flat_boxes()), self.overlap)
        return self.loss_weight * (rows.weight_N * value_N).sum() / rows.divisor
