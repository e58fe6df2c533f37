"""`FGDLoss`: focal and global distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mmkd.errors import naming
from mmkd.functional.checks import check_number
from mmkd.functional.masks import box_masks, check_attention_options, focal_terms
from mmkd.losses.feature_base import Align, FeatureLoss
from mmkd.losses.ground_truth import gt_boxes, input_size
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec


class GlobalContext(nn.Module):
    r"""Adds global context to a map, the block of GCNet (https://arxiv.org/abs/1904.11492).

    .. math:: F + W_2 \, \mathrm{ReLU}(\mathrm{LN}(W_1 c)), \; c = \sum_j \mathrm{softmax}_j(w^\top F_j) F_j

    It starts as the identity: :math:`W_2` is zero.

    Args:
        width: C of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 2)
        self.attend = nn.Conv2d(width, 1, 1)
        self.transform = nn.Sequential(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        nn.init.zeros_(cast(Tensor, self.attend.bias))
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, feat_BCHW: Tensor) -> Tensor:
        """Both B×C×H×W."""
        share_B1P = self.attend(feat_BCHW).flatten(2).softmax(dim=2)
        context_BC = (feat_BCHW.flatten(2) @ share_B1P.transpose(1, 2)).squeeze(2)
        return feat_BCHW + self.transform(context_BC)[:, :, None, None]


@MODELS.register_module()
class FGDLoss(FeatureLoss):
    r"""The teacher's features, weighted by objects and attention, and the relations between positions.

    .. math:: \sum_l \alpha L_{fg} + \beta L_{bg} + \gamma L_{at} + \lambda \,
        \frac{1}{B} \sum_{bchw} \big(R_t(F^t) - R_s(F^s)\big)^2

    The first three are `mmkd.functional.focal_terms` with the masks of `box_masks`: foreground and background
    are separate, each object counts the same whatever its size, and the teacher's attention weighs positions
    and channels. R is a `GlobalContext` block, one per network and level; the blocks train with the student
    but are not in its checkpoints. Sums over positions and channels grow with the input size, as published.

    Source: Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022
    (https://arxiv.org/abs/2111.11837); reference implementation: ``mmdet/distillation/losses/fgd.py`` of
    https://github.com/yzd-v/FGD. The defaults are those of its RetinaNet and GFL configs. Its FCOS has
    (T, α, β, γ, λ) = (0.8, 1.6e-3, 8e-4, 8e-4, 8e-6), its Faster R-CNN (0.5, 5e-5, 2.5e-5, 5e-5, 5e-7).

    Args:
        loss_weight: factor ≥ 0 of the whole loss; ``'auto'`` if a config does not give it.
        temperature: T > 0 of the attention.
        alpha: α ≥ 0, weight of the foreground.
        beta: β ≥ 0, weight of the background.
        gamma: γ ≥ 0, weight of the difference in attention.
        lambd: λ ≥ 0, weight of the relations; 0 builds no blocks.
        levels: see `FeatureLoss`.
        align: see `FeatureLoss`.

    Raises:
        UserError: an option is out of its range.
    """

    of_objects = True
    auto_by_default = True

    def __init__(
        self,
        loss_weight: float = 1.0,
        temperature: float = 0.5,
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 5e-4,
        lambd: float = 5e-6,
        levels: Sequence[int] | None = None,
        align: Align = "auto",
    ) -> None:
        super().__init__(loss_weight, levels, align)
        with naming(self):
            check_attention_options(temperature)
            check_number("[0, inf)", alpha=alpha, beta=beta, gamma=gamma, lambd=lambd)
        self.temperature = temperature
        self.alpha, self.beta, self.gamma, self.lambd = alpha, beta, gamma, lambd
        self.relations_s, self.relations_t = nn.ModuleList(), nn.ModuleList()

    def adapt(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Make the convolutions to the teacher's widths and the blocks of the relations."""
        super().adapt(student, teacher)
        if self.lambd > 0:
            widths = [teacher.in_channels[level] for level in self.chosen(len(teacher.in_channels))]
            self.relations_s = nn.ModuleList(GlobalContext(width) for width in widths)
            self.relations_t = nn.ModuleList(GlobalContext(width) for width in widths)

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a scalar in float32 (float64 for float64 features).

        Args:
            student: outputs with features.
            teacher: outputs with features.
            context: the batch; its samples provide boxes and sizes.
        """
        device = student.feats[0].device
        boxes = [gt_boxes(sample, device) for sample in context.data_samples]
        sizes = [input_size(sample) for sample in context.data_samples]
        total = student.feats[0].new_zeros((), dtype=torch.float32)
        for index, (own, taught) in enumerate(self.pairs(student, teacher)):
            masks = [mask.to(device) for mask in box_masks(boxes, sizes, (own.shape[2], own.shape[3]))]
            terms = focal_terms(own, taught, *masks, temperature=self.temperature)
            for weight, term in zip((self.alpha, self.beta, self.gamma), terms):
                total = total + weight * term
            if self.lambd > 0:
                total = total + self.lambd * self._relation(index, own, taught)
        return self.loss_weight * total

    def _relation(self, index: int, own: Tensor, taught: Tensor) -> Tensor:
        block_s, block_t = self.relations_s[index], self.relations_t[index]
        dtype = cast(GlobalContext, block_s).attend.weight.dtype
        with torch.autocast(own.device.type, enabled=False):
            # Both blocks train: the teacher's features are fixed, the block that reads them is not.
            difference = block_s(own.to(dtype)) - block_t(taught.to(dtype))
            return difference.to(torch.promote_types(dtype, torch.float32)).square().sum() / max(1, len(own))
