"""Shared code of losses on rows: which rows count, their weights, and the divisor of the sum.

Rows are the priors of a dense head, or anything else that a detector classifies: regions, queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmkd.errors import naming
from mmkd.functional.checks import check_choice, exact
from mmkd.losses.base import DistillLoss
from mmkd.structures import DenseOutputs, DistillContext, Need, Valid

Region = Literal["all", "foreground", "teacher", "teacher_foreground", "disagreement"]
Normalizer = Literal["region", "priors", "batch", "foreground", "centerness", "none"]

_NEEDS_OF_REGION: dict[str, frozenset[Need]] = {
    "foreground": frozenset({"labels"}),
    "teacher": frozenset({"cls_logits"}),
    "teacher_foreground": frozenset({"cls_logits", "labels"}),
    "disagreement": frozenset({"cls_logits"}),
}
_NEEDS_OF_NORMALIZER: dict[str, frozenset[Need]] = {
    "foreground": frozenset({"labels"}),
    "centerness": frozenset({"quality_targets"}),
}


@dataclass(frozen=True)
class Rows:
    """The rows that a loss is computed for.

    Attributes:
        weight_N: factor ≥ 0 per row, float32.
        divisor: divisor of the weighted sum, a scalar > 0, averaged over processes.
        index_N: their indices among all rows; ``None`` for all rows.
    """

    weight_N: Tensor
    divisor: Tensor
    index_N: Tensor | None

    def of(self, value: Tensor) -> Tensor:
        """These rows of a tensor with all rows."""
        return value if self.index_N is None else value[self.index_N]


class RowLoss(DistillLoss):
    r"""A weighted sum over rows with a divisor.

    .. math:: \lambda \, \frac{\sum_i w_i \, d_i}{n}

    A subclass computes the :math:`d_i` of `rows`. It reads outputs only through ``flat_cls_logits()``,
    ``flat_boxes()``, ``flat_extra(name)``, ``top_scores()`` and ``image_N``, so it works without feature maps
    too.

    Args:
        loss_weight: λ ≥ 0.
        region: :math:`w_i`. ``'all'``: 1; ``'foreground'``: 1 for rows that the student's assigner matches to
            an object, else 0; ``'teacher'``: the teacher's highest class score; ``'teacher_foreground'``: the
            product of both; ``'disagreement'``: the largest difference of a class score between the two,
            :math:`\max_c |p^t_{ic} - p^s_{ic}|`, without gradient. 0 for rows that ``valid`` excludes.
        normalizer: n, averaged over processes. ``'region'``: :math:`\sum_i w_i`; ``'priors'``: the number of
            rows that ``valid`` counts; ``'batch'``: the number of images; ``'foreground'``: the number of
            rows assigned to an object, at least one per image, as in mmdet's own losses; ``'centerness'``:
            the sum of their centerness targets, for students whose head has a ``loss_centerness``;
            ``'none'``: 1.
        valid: which rows count, see `DistillLoss`.
        every_level: also count pyramid levels on which no image of the process has an object.
        min_score: 0 ≤ s < 1. Rows with :math:`w_i < s` are left out of both sums.

    Raises:
        UserError: an option is out of its range.
    """

    reads: frozenset[Need]  # the outputs that its d reads
    selects = False  # whether rows of weight 0 are dropped in every region

    def __init__(
        self,
        loss_weight: float,
        region: Region,
        normalizer: Normalizer,
        valid: Valid,
        *,
        every_level: bool = True,
        min_score: float = 0.0,
    ) -> None:
        super().__init__(loss_weight, valid)
        with naming(self):
            check_choice("region", region, Region)
            check_choice("normalizer", normalizer, Normalizer)
        self.region = region
        self.normalizer = normalizer
        self.every_level = every_level
        self.min_score = min_score
        self.needs = self.reads | needs_of(region, normalizer)
        if not every_level:
            self.needs |= {"labels"}

    def rows(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Rows:
        """The rows that count, their weights and the divisor."""
        weight_N = self.weights(student, teacher, context)
        if not self.every_level:
            weight_N = weight_N * on_levels_with_objects(student, context)
        if self.min_score > 0:
            weight_N = weight_N * (weight_N >= self.min_score)
        # If few rows remain, computing the others would be wasted.
        few = self.selects or "foreground" in self.region or self.min_score > 0
        return chosen(weight_N, self.normalizer, student, context, few)

    def weights(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weight of each row by the region, (N,) float32."""
        return region_weights(self.region, student, teacher, context)


def needs_of(region: str, normalizer: str) -> frozenset[Need]:
    """The outputs that the weights and the divisor need."""
    nothing: frozenset[Need] = frozenset()
    return _NEEDS_OF_REGION.get(region, nothing) | _NEEDS_OF_NORMALIZER.get(normalizer, nothing)


def region_weights(
    region: str, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext
) -> Tensor:
    """The weight of each row in a `Region`, (N,) float32."""
    weight_N = context.valid_N.float()
    if "foreground" in region:
        weight_N = weight_N * is_object(student, context)
    if "teacher" in region:
        weight_N = weight_N * teacher.top_scores().detach()
    if region == "disagreement":
        weight_N = weight_N * largest_difference(student, teacher)
    return weight_N


def chosen(
    weight_N: Tensor, normalizer: str, student: DenseOutputs, context: DistillContext, few: bool
) -> Rows:
    """The rows for given weights, without those of weight 0 if ``few``, and the `Normalizer`'s divisor."""
    if normalizer == "none":
        divisor = weight_N.new_ones(())
    else:
        # If it is 0 on all processes, the sum above it is 0 too.
        least = torch.finfo(torch.float32).eps
        divisor = context.mean_over_processes(_divisor(weight_N, normalizer, student, context)).clamp(
            min=least
        )
    index_N = weight_N.nonzero().squeeze(1) if few else None
    return Rows(weight_N if index_N is None else weight_N[index_N], divisor, index_N)


def _divisor(weight_N: Tensor, normalizer: str, student: DenseOutputs, context: DistillContext) -> Tensor:
    if normalizer == "region":
        return weight_N.sum()
    if normalizer == "priors":
        return context.valid_N.sum()
    if normalizer == "batch":
        return weight_N.new_tensor(context.num_images)
    if normalizer == "foreground":
        object_N = is_object(student, context)
        return student.image_N[object_N].bincount(minlength=context.num_images).clamp(min=1).sum()
    assert context.quality_sum is not None
    return context.quality_sum


def is_object(student: DenseOutputs, context: DistillContext) -> Tensor:
    """Whether the student's assigner matches a row to an object, (N,) bool."""
    assert context.labels_N is not None
    return (context.labels_N >= 0) & (context.labels_N < student.spec.num_classes)


def on_levels_with_objects(student: DenseOutputs, context: DistillContext) -> Tensor:
    """Whether a row is on a level on which an image of this process has an object, (N,) bool."""
    parts = is_object(student, context).split(student.rows_per_level)
    return torch.cat([part.any().expand(len(part)) for part in parts])


def largest_difference(student: DenseOutputs, teacher: DenseOutputs) -> Tensor:
    """The largest difference of a class score per row, (N,) in [0, 1], without gradient."""
    scores = []
    for outputs in (student, teacher):
        # Not under `no_grad`: outputs cache their results, for later losses too.
        logits_NK = exact(outputs.flat_cls_logits().detach())
        probability_NK = logits_NK.sigmoid() if outputs.spec.use_sigmoid else logits_NK.softmax(dim=1)
        scores.append(probability_NK[:, : outputs.spec.num_classes])
    return (scores[0] - scores[1]).abs().amax(dim=1)
