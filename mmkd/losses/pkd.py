"""`PKDLoss`: Pearson's correlation of feature channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.checks import check_choice
from mmkd.functional.features import Statistics, pearson_distance
from mmkd.losses.feature_base import FeatureLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext


@MODELS.register_module()
class PKDLoss(FeatureLoss):
    r"""One minus Pearson's correlation of the student's and the teacher's channels.

    .. math:: \lambda \sum_l \frac{1}{2 BCHW} \sum (\hat f^s_l - \hat f^t_l)^2
        = \lambda \sum_l \frac{1}{C} \sum_c 1 - r(f^s_{lc}, f^t_{lc})

    where a hat marks a channel normalised to zero mean and unit deviation
    (`mmkd.functional.pearson_distance`). Scale and offset of each channel do not matter, so teachers of
    another kind or with other magnitudes work as well. Padding counts.

    By default the statistics cover the images of one process, as published. So they depend on which images
    share a batch: n processes with b images each differ slightly from one process with n·b.
    ``statistics='image'`` compares each image separately, and does not depend on the batch.

    Source: Cao et al., NeurIPS 2022 (https://arxiv.org/abs/2207.02039). Reference implementation: mmrazor's
    ``PKDLoss``, whose configs sum over the four finest levels (``levels=[0, 1, 2, 3]``) with λ = 6 for Faster
    R-CNN and for RetinaNet under a Swin teacher, λ = 10 for its other RetinaNets and RepPoints. It uses the
    unbiased deviation, a factor (n − 1)/n for n = B·H·W. If sizes differ it resizes the student's map; this
    loss resizes the teacher's.

    Args:
        loss_weight: λ ≥ 0.
        levels: indices of the levels to use; all by default.
        align: ``'auto'``, ``'conv'`` or ``'none'``, as in `FeatureLoss`.
        statistics: ``'batch'`` or ``'image'``.
        unbiased: use the unbiased deviation, a factor (n − 1)/n, as the reference implementation does.

    Raises:
        UserError: an option is out of its range, or the levels or widths of the pair do not match.
    """

    def __init__(
        self,
        loss_weight: float = 6.0,
        levels: Sequence[int] | None = None,
        align: str = "auto",
        statistics: Statistics = "batch",
        unbiased: bool = False,
    ) -> None:
        super().__init__(loss_weight, levels, align)
        with naming(self):
            check_choice("statistics", statistics, Statistics)
        self.statistics = statistics
        self.unbiased = unbiased

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a scalar; reads only features."""
        values = [
            pearson_distance(own, taught, statistics=self.statistics) * self._bessel(taught)
            for own, taught in self.pairs(student, teacher)
        ]
        return self.loss_weight * torch.stack(values).sum()

    def _bessel(self, level_BCHW: Tensor) -> float:
        """(n − 1)/n, with n the number of values in a channel's deviation."""
        n = level_BCHW[:, :1].numel() if self.statistics == "batch" else level_BCHW[:1, :1].numel()
        return (n - 1) / n if self.unbiased and n else 1.0
