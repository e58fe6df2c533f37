"""`PGDLoss`: features where the teacher's predictions are best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkd.errors import UserError, naming
from mmkd.functional.boxes import inside_boxes
from mmkd.functional.checks import check_choice, check_number, check_whole
from mmkd.functional.masks import check_attention_options, focal_terms
from mmkd.functional.quality import gaussian_weights, prediction_quality
from mmkd.losses.feature_base import Align, FeatureLoss
from mmkd.losses.ground_truth import gt_boxes, gt_labels
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid, by_place


@MODELS.register_module()
class PGDLoss(FeatureLoss):
    r"""PGD-style distillation: features where the teacher's predictions find an object.

    .. math:: \sum_l (1 + g l)(\alpha L_{fg} + \beta L_{bg}) + \delta L_{at}

    The terms are `mmkd.functional.focal_terms` with channel attention by position. The foreground weights are
    `gaussian_weights`: for each object, the ``topk`` positions over all levels with the best predicted class
    and box (`prediction_quality`), under a Gaussian fitted to them. Background positions lie in no box. Both
    are divided by their number per level and image; priors in the padding are neither. An object whose best
    positions all lie outside its box does not count.

    The published method distils the last maps of the head's two towers, each with its own weights (ξ = 0.8
    for classes, 0.6 for boxes); this loss distils the neck's maps, in the form for classes.

    Source: Yang et al., "Prediction-Guided Distillation for Dense Object Detection", ECCV 2022
    (https://arxiv.org/abs/2203.05469); reference implementation: https://github.com/ChenhongyiYang/PGD,
    ``pgd_cls.py``, ``pgw_anchor_based.py`` and ``background_weight.py``. The defaults are those of its ATSS.
    There the masks of one image apply to the features of every image of the batch, so with four images per
    process its weights are about four times these; with one image they are the same.

    Args:
        loss_weight: factor ≥ 0 of the whole loss; ``'auto'`` if a config does not give it.
        alpha: α ≥ 0, weight of the foreground.
        beta: β ≥ 0, weight of the background.
        delta: δ ≥ 0, weight of the difference in attention.
        temperature: T > 0 of the attention.
        xi: ξ in [0, 1]: 0 uses only the class score, 1 only the box.
        topk: positions per object, ≥ 1.
        level_gain: g ≥ 0: how much more each level counts than the one before it.
        levels: see `FeatureLoss`; positions are chosen over all levels.
        align: see `FeatureLoss`.
        valid: which priors may be chosen or count as background, see `DistillLoss`.

    Raises:
        UserError: an option is out of its range; in `check`, the teacher has no dense head or different
            classes.
    """

    needs: frozenset[Need] = frozenset({"feats", "cls_logits", "boxes"})
    of_objects = True
    auto_by_default = True

    def __init__(
        self,
        loss_weight: float = 1.0,
        alpha: float = 0.08,
        beta: float = 0.04,
        delta: float = 8e-4,
        temperature: float = 0.8,
        xi: float = 0.8,
        topk: int = 9,
        level_gain: float = 0.25,
        levels: Sequence[int] | None = None,
        align: Align = "auto",
        valid: Valid = "image",
    ) -> None:
        super().__init__(loss_weight, levels, align)
        self.valid = valid
        with naming(self):
            check_choice("valid", valid, Valid)
            check_attention_options(temperature)
            check_number("[0, 1]", xi=xi)
            check_number("[0, inf)", alpha=alpha, beta=beta, delta=delta, level_gain=level_gain)
            check_whole(1, topk=topk)
        self.alpha, self.beta, self.delta = alpha, beta, delta
        self.temperature, self.xi, self.topk, self.level_gain = temperature, xi, topk, level_gain

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse a teacher without dense predictions or with different classes."""
        super().check(student, teacher)
        if 0 in teacher.num_base_priors:
            raise UserError("PGDLoss needs the predictions of a dense head, but the teacher has none")
        if student.num_classes != teacher.num_classes:
            raise UserError(
                f"PGDLoss: the student has {student.num_classes} classes and the teacher "
                f"{teacher.num_classes}; they must be the same"
            )

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a scalar in float32 (float64 for float64 features).

        Args:
            student: outputs with features.
            teacher: outputs with features, class logits and boxes.
            context: the batch; its samples provide boxes and labels.
        """
        masks = self.masks(teacher, context, student.spec.num_base_priors)
        total = student.feats[0].new_zeros((), dtype=torch.float32)
        for level, (own, taught) in zip(self.chosen(len(masks)), self.pairs(student, teacher)):
            foreground, background, attention = focal_terms(
                own, taught, *masks[level], temperature=self.temperature, channels="position"
            )
            gain = 1 + self.level_gain * level
            total = total + gain * (self.alpha * foreground + self.beta * background)
            total = total + self.delta * attention
        return self.loss_weight * total

    @torch.no_grad()
    def masks(
        self, teacher: DenseOutputs, context: DistillContext, student_priors: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """The weights of foreground and background per level, B×H×W each.

        Args:
            teacher: outputs with class logits and boxes.
            context: the batch.
            student_priors: A of the student's levels, which ``context.valid_N`` refers to.
        """
        assert teacher.cls_logits is not None
        sizes = [(level.shape[2], level.shape[3]) for level in teacher.cls_logits]
        images, priors = context.num_images, teacher.spec.num_base_priors
        scores = by_place(_scores(teacher), sizes, priors, images)
        boxes = by_place(teacher.flat_boxes(), sizes, priors, images)
        valid = [part.any(dim=2) for part in by_place(context.valid_N, sizes, student_priors, images)]
        # mmdet's anchors are centered on multiples of the stride; so are the points of most other heads.
        centers_P2 = torch.cat([_grid(*layout) for layout in zip(sizes, teacher.strides)]).to(boxes[0])
        counts = [height * width for height, width in sizes]

        if not context.data_samples:
            return [(boxes[0].new_zeros(0, *size),) * 2 for size in sizes]
        foreground: list[list[Tensor]] = [[] for _ in sizes]
        background: list[list[Tensor]] = [[] for _ in sizes]
        for image, sample in enumerate(context.data_samples):
            objects_G4 = gt_boxes(sample, boxes[0].device).to(boxes[0].dtype)
            labels_G = gt_labels(sample, boxes[0].device)
            quality_PG = torch.cat(
                [
                    # The best prior represents its position.
                    prediction_quality(
                        score[image].flatten(0, 1), box[image].flatten(0, 1), objects_G4, labels_G, self.xi
                    )
                    .reshape(*box.shape[1:3], len(objects_G4))
                    .amax(dim=1)
                    for score, box in zip(scores, boxes)
                ]
            )
            valid_P = torch.cat([part[image] for part in valid])
            weight_P = gaussian_weights(quality_PG, centers_P2, objects_G4, valid_P, self.topk)
            outside_P = valid_P & ~inside_boxes(centers_P2, objects_G4).any(dim=1)
            for level, (height, width) in enumerate(sizes):
                for found, values_P in ((foreground, weight_P), (background, outside_P.to(weight_P))):
                    found[level].append(values_P.split(counts)[level].reshape(height, width))
        return [
            (_divided_by_count(torch.stack(a)), _divided_by_count(torch.stack(b)))
            for a, b in zip(foreground, background)
        ]


def _scores(outputs: DenseOutputs) -> Tensor:
    logits_NK = outputs.flat_cls_logits()
    logits_NK = logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32))
    return logits_NK.sigmoid() if outputs.spec.use_sigmoid else logits_NK.softmax(dim=1)


def _grid(size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size[0]) * stride[1], torch.arange(size[1]) * stride[0], indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _divided_by_count(mask_BHW: Tensor) -> Tensor:
    return mask_BHW / (mask_BHW != 0).sum(dim=(1, 2), keepdim=True).clamp(min=1)
