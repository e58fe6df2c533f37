"""`MGDLoss`: masked generative distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmkd.errors import naming
from mmkd.functional.checks import check_number
from mmkd.functional.features import squared_distance
from mmkd.functional.masks import random_keep_mask
from mmkd.losses.feature_base import Align, FeatureLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec


@MODELS.register_module()
class MGDLoss(FeatureLoss):
    r"""Generates the teacher's features from the student's masked ones.

    .. math:: \alpha \sum_l \frac{1}{B} \sum_{bchw} \big(F^t - G(M \odot f(F^s))\big)^2

    where M is zero at a random fraction λ of the positions, f the convolution to the teacher's width (only
    where the widths differ) and G, one per level, a 3×3 convolution, a ReLU and a 3×3 convolution. G trains
    with the student but is not in its checkpoints, so the loss is not zero for two equal maps. The sum over
    positions grows with the input size, as published: α is for images of about 800×1333.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022 (https://arxiv.org/abs/2205.01529);
    reference implementation: ``det/mmdet/distillation/losses/mgd.py`` of https://github.com/yzd-v/MGD. The
    defaults are those of its RetinaNet; its two-stage configs have α = 5e-7 and λ = 0.45.

    Args:
        loss_weight: α ≥ 0; ``'auto'`` if a config does not give it.
        mask_ratio: λ in [0, 1); 0 masks nothing.
        levels: see `FeatureLoss`.
        align: see `FeatureLoss`.
        mask_on_channel: mask whole channels of an image instead of positions; an option of mmrazor's
            ``MGDLoss``.

    Raises:
        UserError: an option is out of its range.
    """

    auto_by_default = True
    default_share = 0.5  # with 4 it had less on both validation splits (docs/results-tables.md)

    def __init__(
        self,
        loss_weight: float = 2e-5,
        mask_ratio: float = 0.65,
        levels: Sequence[int] | None = None,
        align: Align = "auto",
        mask_on_channel: bool = False,
    ) -> None:
        super().__init__(loss_weight, levels, align)
        with naming(self):
            check_number("[0, 1)", mask_ratio=mask_ratio)
        self.mask_ratio = mask_ratio
        self.mask_on_channel = mask_on_channel
        self.generators = nn.ModuleList()

    def adapt(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Build the convolutions to the teacher's widths and the blocks that generate its features."""
        super().adapt(student, teacher)
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
            )
            for width in (teacher.in_channels[level] for level in self.chosen(len(teacher.in_channels)))
        )

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a scalar in float32 (float64 for float64 features)."""
        total = student.feats[0].new_zeros((), dtype=torch.float32)
        with torch.autocast(total.device.type, enabled=False):
            for generate, (own_BCHW, taught_BCHW) in zip(self.generators, self.pairs(student, teacher)):
                keep = random_keep_mask(own_BCHW, self.mask_ratio, channels=self.mask_on_channel)
                generated_BCHW = generate((own_BCHW * keep).to(next(generate.parameters()).dtype))
                total = total + squared_distance(generated_BCHW, taught_BCHW)
        return self.loss_weight * total
