"""`CWDLoss`: matches where each feature channel is active, as a distribution over positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.features import channel_kl
from mmkd.functional.kl import check_kl_options
from mmkd.losses.feature_base import FeatureLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext


@MODELS.register_module()
class CWDLoss(FeatureLoss):
    r"""Channel-wise KL divergence of softmaxes over positions.

    .. math:: \lambda \sum_l \frac{T^2}{B C} \sum_{b,c} \mathrm{KL}(p^t_{lbc} \,\|\, p^s_{lbc}),
        \qquad p_{lbc} = \mathrm{softmax}_{HW}(f_{lbc} / T)

    computed by `mmkd.functional.channel_kl`. The teacher's activation weighs the positions: the few salient
    ones count, the background hardly does. The offset of a channel does not matter. Padding counts like any
    other position.

    Source: Shu et al., ICCV 2021 (https://arxiv.org/abs/2011.13256). Reference implementation: mmrazor's
    ``ChannelWiseDivergence``, whose detection configs sum T = 1, λ = 10 over the five levels of the neck.

    Args:
        temperature: T > 0 (mmrazor's ``tau``).
        loss_weight: λ ≥ 0.
        levels: indices of the levels to use; all by default.
        align: ``'auto'``, ``'conv'`` or ``'none'``, as in `FeatureLoss`.

    Raises:
        UserError: an option is out of its range, or the levels or widths of the pair do not match.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        loss_weight: float = 10.0,
        levels: Sequence[int] | None = None,
        align: str = "auto",
    ) -> None:
        super().__init__(loss_weight, levels, align)
        with naming(self):
            check_kl_options(temperature, "softmax", "batchmean")
        self.temperature = temperature

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a scalar; reads only features."""
        values = [
            channel_kl(own, taught, temperature=self.temperature)
            for own, taught in self.pairs(student, teacher)
        ]
        return self.loss_weight * torch.stack(values).sum()
