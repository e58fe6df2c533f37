"""`BoxL1Loss`: pulls center and size of the student's boxes to the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd.functional.boxes import box_l1_loss
from mmkd.losses.row_base import Normalizer, Region, RowLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, Need, Valid


@MODELS.register_module()
class BoxL1Loss(RowLoss):
    r"""L1 distance of center and size of two boxes, relative to the image size: DETR's box loss.

    .. math:: \lambda \, \frac{\sum_i w_i \left( \frac{|\Delta x_i| + |\Delta w_i|}{W_i} +
        \frac{|\Delta y_i| + |\Delta h_i|}{H_i} \right)}{\sum_i w_i}

    W and H are the size of the image without padding. Meant for queries, together with `BoxIoULoss`; DETR's
    own loss weighs the two with 5 and 2.

    Source: Carion et al., 2020 (https://arxiv.org/abs/2005.12872). As a distillation loss weighted by the
    teacher's score: KD-DETR, Wang et al., CVPR 2024 (https://arxiv.org/abs/2211.08071), section 4; its
    implementation (Myleswork/KD-DETR) averages the four terms instead of summing them.

    Args:
        loss_weight: λ ≥ 0.
        region: :math:`w_i`, see `RowLoss`.
        normalizer: the divisor, see `RowLoss`.
        valid: which rows count, see `RowLoss`.

    Raises:
        UserError: an option is out of its range.
    """

    reads: frozenset[Need] = frozenset({"boxes"})

    def __init__(
        self,
        loss_weight: float = 5.0,
        region: Region = "teacher",
        normalizer: Normalizer = "region",
        valid: Valid = "image",
    ) -> None:
        super().__init__(loss_weight, region, normalizer, valid)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with boxes.
            teacher: outputs with boxes of the same layout, and class logits if the region uses scores.
            context: the batch; its samples must have an ``img_shape``.
        """
        rows = self.rows(student, teacher, context)
        own_N4, taught_N4 = rows.of(student.flat_boxes()), rows.of(teacher.flat_boxes())
        sizes = [(width, height) for height, width in (sample.img_shape for sample in context.data_samples)]
        size_B2 = torch.tensor(sizes, dtype=torch.float32, device=own_N4.device).reshape(-1, 2)
        value_N = box_l1_loss(own_N4, taught_N4, size_B2[rows.of(student.image_N)])
        return self.loss_weight * (rows.weight_N * value_N).sum() / rows.divisor
