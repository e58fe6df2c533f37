"""`FitNetsLoss`: feature maps through a regressor, by their squared difference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd.functional.features import feature_mse
from mmkd.losses.feature_base import FeatureLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext


@MODELS.register_module()
class FitNetsLoss(FeatureLoss):
    r"""Mean squared difference of the teacher's maps and a regression from the student's.

    .. math:: \frac{\lambda}{L} \sum_l \frac{1}{BCHW} \sum (r_l(f^s_l) - f^t_l)^2

    The regressor :math:`r_l` is a 1×1 convolution to the teacher's width on every level, even where widths
    match, as published (the paper also regresses maps of other sizes, hence its larger kernels). The mean
    over levels makes λ independent of their number; the paper uses one pair of layers. Channels with large
    values dominate. Padding counts.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    equation 3; see `mmkd.functional.feature_mse`. There the hint is a first training stage; here, as in later
    work on detectors, it is one more loss term.

    Args:
        loss_weight: λ ≥ 0.
        levels: indices of the levels to use; all by default.
        align: ``'conv'``: a regressor on every level; ``'auto'``: only where widths differ; ``'none'``: none.

    Raises:
        UserError: an option is out of its range, or the levels or widths of the pair do not match.
    """

    def __init__(
        self, loss_weight: float = 1.0, levels: Sequence[int] | None = None, align: str = "conv"
    ) -> None:
        super().__init__(loss_weight, levels, align)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a scalar; reads only features."""
        values = [feature_mse(own, taught) for own, taught in self.pairs(student, teacher)]
        return self.loss_weight * torch.stack(values).mean()
