"""`TeacherBoxesLoss`: the student's own losses, with the teacher's boxes as annotations."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.checks import check_number
from mmkd.losses.base import DistillLoss
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, Need


@MODELS.register_module()
class TeacherBoxesLoss(DistillLoss):
    r"""The student's own losses, computed again with the teacher's boxes as targets.

    .. math:: \lambda \, L_{\text{student}}(\{b_j : s_j \ge \tau\})

    with :math:`b_j` a box with its class and :math:`s_j` its score. So any student can learn from anything
    that finds boxes: a detector, predictions in a file, a function. Backbone and neck do not run again, only
    the heads. Assigner, sampler, normalizer and weights are the student's own.

    With ``soft``, each box is used with a probability equal to its score, drawn anew in each step. Over many
    steps a box with score 0.5 is an object half of the time and background otherwise, like a soft target, and
    no mmdet detector needs to support weights. Hard boxes above a threshold are sometimes better.

    Source: Teach-DETR, Huang et al., 2022 (https://arxiv.org/abs/2211.11953), equation 2, gives DETR the
    boxes of a teacher as extra annotations, weighted by score; pseudo boxes above a threshold: STAC, Sohn et
    al., 2020 (https://arxiv.org/abs/2005.04757), and Unbiased Teacher, Liu et al., 2021
    (https://arxiv.org/abs/2102.09480).

    Args:
        loss_weight: λ ≥ 0.
        min_score: τ in [0, 1]. Boxes below it are not used.
        ignore_score: boxes with a score from here up to ``min_score`` are ignored: neither objects nor
            background. Needs an assigner that supports ignored boxes, like `MaxIoUAssigner` and
            `ATSSAssigner`; ``None``: they are background.
        soft: sample boxes by score.

    Raises:
        UserError: an option is out of its range.
    """

    needs: frozenset[Need] = frozenset({"detections", "own_losses"})

    def __init__(
        self,
        loss_weight: float = 1.0,
        min_score: float = 0.5,
        ignore_score: float | None = None,
        soft: bool = False,
    ) -> None:
        super().__init__(loss_weight)
        with naming(self):
            check_number("[0, 1]", min_score=min_score)
            if ignore_score is not None:
                check_number("[0, 1]", ignore_score=ignore_score)
                if ignore_score > min_score:
                    raise ValueError(
                        f"ignore_score must be at most min_score, found {ignore_score} > {min_score}"
                    )
        self.min_score, self.ignore_score, self.soft = min_score, ignore_score, soft
        self.ignores = ignore_score is not None

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted sum of the student's own losses, a scalar."""
        assert teacher.detections is not None
        assert context.own_losses is not None
        chosen = [self._chosen(found) for found in teacher.detections]
        total = context.own_losses([part[0] for part in chosen], [part[1] for part in chosen])
        return self.loss_weight * total

    def _chosen(self, found: Any) -> tuple[InstanceData, InstanceData]:
        """The targets and the boxes to ignore among the detections of an image."""
        taken_M = found.scores >= self.min_score
        ignored_M = torch.zeros_like(taken_M)
        if self.ignore_score is not None:
            ignored_M = (found.scores >= self.ignore_score) & ~taken_M
        if self.soft:
            taken_M = taken_M & (torch.rand_like(found.scores) < found.scores)
        return (
            InstanceData(bboxes=found.bboxes[taken_M], labels=found.labels[taken_M]),
            InstanceData(bboxes=found.bboxes[ignored_M]),
        )
