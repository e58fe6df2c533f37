"""`CosineLoss`: the angle between feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.checks import check_choice
from mmkd.functional.features import Vector, cosine_distance
from mmkd.losses.feature_base import FeatureLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext


@MODELS.register_module()
class CosineLoss(FeatureLoss):
    r"""One minus the cosine between the student's and the teacher's map of an image.

    .. math:: \frac{\lambda}{L B} \sum_{l,b} 1 - \cos(v^s_{lb}, v^t_{lb})

    It ignores the magnitude of features and compares only their direction. Where the widths differ, the
    default averages neighbouring channels of the wider map (`mmkd.functional.cosine_distance`). That needs no
    parameters, but channel order has no meaning in a network: for students that were not made from their
    teacher, a convolution (``align='auto'``) is better. Padding counts.

    Source: PyTorch's knowledge distillation tutorial, "Cosine loss minimization run"
    (https://pytorch.org/tutorials/beginner/knowledge_distillation_tutorial.html).

    Args:
        loss_weight: λ ≥ 0.
        levels: indices of the levels to use; all by default.
        align: ``'pool'``: average channels where widths differ; ``'auto'``, ``'conv'`` and ``'none'`` as in
            `FeatureLoss`.
        vector: ``'map'``: v is the whole map; ``'mean'``: its mean over positions, which leaves the student
            free to place its features anywhere.

    Raises:
        UserError: an option is out of its range, or the levels or widths of the pair do not match.
    """

    valid_aligns = ("pool", *FeatureLoss.valid_aligns)

    def __init__(
        self,
        loss_weight: float = 1.0,
        levels: Sequence[int] | None = None,
        align: str = "pool",
        vector: Vector = "map",
    ) -> None:
        super().__init__(loss_weight, levels, align)
        with naming(self):
            check_choice("vector", vector, Vector)
        self.vector = vector

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a scalar; reads only features."""
        values = [
            cosine_distance(own, taught, vector=self.vector) for own, taught in self.pairs(student, teacher)
        ]
        return self.loss_weight * torch.stack(values).mean()
