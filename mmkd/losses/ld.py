"""`LocalizationDistillationLoss`: matches the distributions of the box sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_choice, check_number
from mmkd.functional.localization import Nearness, localization_kl, square_anchors, valuable_region
from mmkd.losses.base import DistillLoss
from mmkd.losses.ground_truth import gt_boxes
from mmkd.losses.row_base import Normalizer, chosen, is_object, needs_of, region_weights
from mmkd.losses.row_base import Region as RegionOfRows
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Need, Valid

Region = Literal["main", "vlr", RegionOfRows]
_REGIONS = get_args(Region)


@MODELS.register_module()
class LocalizationDistillationLoss(DistillLoss):
    r"""Localization distillation (LD) for heads whose boxes are distributions, such as GFL.

    .. math:: \lambda \sum_{r \in \{\mathrm{main}, \mathrm{vlr}\}} \lambda_r \,
        \frac{\sum_i w_{ri} \, \mathrm{KL}_T(z^t_i, z^s_i)}{n_r}

    over the priors i of the batch outside the padding; :func:`localization_kl` is KL with its factor T²,
    averaged over the four sides and summed over the bins of a distribution. The main region consists of the
    assigned priors, weighted by the *student's* highest class score; the valuable localization region (VLR)
    consists of anchors near an object, weighted by their IoU with it (`valuable_region`).
    :math:`n_r = \sum_i w_{ri}` is averaged over processes, like gradients.

    The loss does not see the head's anchors. The VLR uses the square anchors of ATSS and GFL: one per
    position, ``anchor_scale`` strides wide, centered on multiples of the stride.

    The reference implementation does not divide by :math:`n_r`, so its weight depends on the images per GPU
    and their objects; and it averages over the R = reg_max + 1 bins. ``normalizer='none'`` with
    ``main_weight=0.25 / R, vlr_weight=0.0625 / R`` reproduces it on each GPU. The defaults keep the ratio of
    the two; ten times as much drowned the task's losses and lost mAP (docs/results.md).

    Source: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022
    (https://arxiv.org/abs/2102.12252). Reference implementation: HikariTJU/LD (``ld_head.py``); mmdet's
    ``LDHead`` has only the main region. Where paper and implementation differ (weights, how near an object
    the VLR is, assigned priors within it) the defaults follow the implementation.

    Args:
        loss_weight: λ ≥ 0.
        temperature: T > 0.
        region: ``'main'``, ``'vlr'`` or a region of `RowLoss`, like ``'teacher'`` for CrossKD's GFL; or a
            list of several.
        main_weight: :math:`\lambda_\mathrm{main}` ≥ 0.
        vlr_weight: :math:`\lambda_\mathrm{vlr}` ≥ 0.
        teacher_weight: λ ≥ 0 of ``'teacher'`` and the other regions of `RowLoss`.
        normalizer: :math:`n_r`, see `RowLoss`.
        alpha: 0 ≤ α < 1, how far the VLR reaches from the objects.
        vlr_nearness: the overlap in `valuable_region`: ``'iof'`` (reference implementation) or ``'iou'``
            (paper).
        anchor_scale: sides of the anchors in strides, ``octave_base_scale`` of the head's anchor generator.
        valid: which priors count, see `RowLoss`; anchors of the VLR follow it too.

    Raises:
        UserError: an option is out of its range; the VLR is used with a head with several priors per
            position; in the first iteration, a head's boxes are not distributions, or their lengths differ.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        temperature: float = 10.0,
        region: Region | Sequence[Region] = ("main", "vlr"),
        main_weight: float = 0.1,
        vlr_weight: float = 0.025,
        teacher_weight: float = 0.1,
        normalizer: Normalizer = "region",
        alpha: float = 0.25,
        vlr_nearness: Nearness = "iof",
        anchor_scale: float = 8.0,
        valid: Valid = "image",
    ) -> None:
        super().__init__(loss_weight, valid)
        regions = (region,) if isinstance(region, str) else region
        own_weights = {"main": main_weight, "vlr": vlr_weight}
        with naming(self):
            if (
                not isinstance(regions, (list, tuple))
                or not regions
                or any(name not in _REGIONS for name in regions)
            ):
                raise ValueError(f"region must be one or more of {', '.join(_REGIONS)}, found {region!r}")
            check_choice("normalizer", normalizer, Normalizer)
            check_choice("vlr_nearness", vlr_nearness, Nearness)
            check_number("(0, inf)", temperature=temperature, anchor_scale=anchor_scale)
            check_number(
                "[0, inf)", main_weight=main_weight, vlr_weight=vlr_weight, teacher_weight=teacher_weight
            )
            check_number("[0, 1)", alpha=alpha)
        self.temperature = temperature
        weights = {name: own_weights.get(name, teacher_weight) for name in _REGIONS if name in regions}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise UserError("LocalizationDistillationLoss: the weights of all regions are 0")
        self.normalizer = normalizer
        self.alpha = alpha
        self.vlr_nearness = vlr_nearness
        self.anchor_scale = anchor_scale
        needs: frozenset[Need] = frozenset({"bbox_pred"})
        needs = needs.union(*(needs_of(name, normalizer) for name in self.weights))
        if "main" in self.weights:
            of_main: frozenset[Need] = frozenset({"cls_logits", "labels"})
            self.of_student = of_main - needs - {"labels"}
            needs |= of_main
        self.needs = needs
        self.of_objects = "vlr" in self.weights

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse the VLR for a head with several priors per position: its anchors are different."""
        if "vlr" in self.weights and set(student.num_base_priors) != {1}:
            raise UserError(
                "LocalizationDistillationLoss: this head does not have one square anchor per position.",
                expected="one prior per position, as in GFL",
                found=f"{list(student.num_base_priors)} by level",
                remedy="set region='main'",
            )

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext) -> Tensor:
        """The weighted loss of a batch, a float32 scalar.

        Args:
            student: outputs with class logits and box distributions.
            teacher: outputs with box distributions of the same layout.
            context: the batch, with its ground truth.

        Raises:
            UserError: the boxes of a head are not distributions, or their lengths differ.
        """
        student_ND, teacher_ND = student.flat_bbox_pred(), teacher.flat_bbox_pred()
        _check_distributions(student_ND.shape[1], teacher_ND.shape[1])
        total = torch.zeros((), device=student_ND.device)
        for name, factor in self.weights.items():
            weight_N = self._weight(name, student, teacher, context)
            rows = chosen(weight_N, self.normalizer, student, context, few=True)
            value_N = localization_kl(rows.of(student_ND), rows.of(teacher_ND), self.temperature)
            total = total + factor * ((rows.weight_N * value_N).sum() / rows.divisor)
        return self.loss_weight * total

    def _weight(
        self, region: str, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext
    ) -> Tensor:
        if region == "main":
            return student.top_scores().detach() * is_object(student, context) * context.valid_N
        if region == "vlr":
            return self._vlr(student, context) * context.valid_N
        return region_weights(region, student, teacher, context)

    def _vlr(self, student: DenseOutputs, context: DistillContext) -> Tensor:
        assert student.bbox_pred is not None
        weight_BHW = [
            torch.zeros(level.shape[0], *level.shape[-2:], device=level.device) for level in student.bbox_pred
        ]
        device = weight_BHW[0].device
        for image, sample in enumerate(context.data_samples):
            height, width = _size(sample, self.valid)
            # Positions in the padding would move the thresholds. The sizes are known without a GPU sync.
            sizes = [
                (min(math.ceil(height / y), weight.shape[1]), min(math.ceil(width / x), weight.shape[2]))
                for weight, (x, y) in zip(weight_BHW, student.strides)
            ]
            anchors = [
                square_anchors(*size, stride, self.anchor_scale, device)
                for size, stride in zip(sizes, student.strides)
            ]
            per_level = [len(level) for level in anchors]
            gt_G4 = gt_boxes(sample, device).to(anchors[0])
            region_M = valuable_region(torch.cat(anchors), per_level, gt_G4, self.alpha, self.vlr_nearness)
            for weight, part, (rows, columns) in zip(weight_BHW, region_M.split(per_level), sizes):
                weight[image, :rows, :columns] = part.reshape(rows, columns)
        return torch.cat([weight.flatten() for weight in weight_BHW])


def _check_distributions(student_D: int, teacher_D: int) -> None:
    for whose, D in (("student", student_D), ("teacher", teacher_D)):
        if D <= 4 or D % 4:
            raise UserError(
                f"LocalizationDistillationLoss: the {whose}'s head does not predict box distributions.",
                expected="4·(reg_max + 1) box channels per prior, as in GFLHead",
                found=f"{D} box channels",
                remedy="use GFLHead for both, or distil boxes with BoxIoULoss",
            )
    if student_D != teacher_D:
        raise UserError(
            "LocalizationDistillationLoss: reg_max differs between student and teacher.",
            expected=f"reg_max={teacher_D // 4 - 1} (the teacher's)",
            found=f"reg_max={student_D // 4 - 1} (the student's)",
            remedy="set reg_max of the student's head to the teacher's, or distil boxes with BoxIoULoss",
        )


def _size(sample: Any, valid: Valid) -> tuple[int, int]:
    """(height, width) up to which priors count."""
    size = sample.img_shape if valid == "image" else getattr(sample, "pad_shape", sample.img_shape)
    return int(size[0]), int(size[1])
