"""`LocalizationDistillationLoss`: the distributions of the boxes' sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mmkd.errors import UserError, user_error
from mmkd.functional.localization import Nearness, localization_kl, square_anchors, valuable_region
from mmkd.losses.base import DistillLoss, is_object
from mmkd.losses.ground_truth import gt_boxes
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, DistillContext, HeadSpec, Valid

Region = Literal["main", "vlr", "teacher"]
Normalizer = Literal["region", "none"]


@MODELS.register_module()
class LocalizationDistillationLoss(DistillLoss):
    r"""Localization distillation (LD) for heads whose boxes are distributions, such as GFL.

    .. math:: \lambda \sum_{r \in \{\mathrm{main}, \mathrm{vlr}\}} \lambda_r \,
        \frac{\sum_i w_{ri} \, \mathrm{KL}_T(z^t_i, z^s_i)}{n_r}

    over the priors i of the batch outside the padding; :func:`localization_kl` is KL with its factor T²,
    averaged over the four sides and summed over the bins of a distribution. The main region are the assigned
    priors, weighted by the *student's* highest class score; the valuable localization region (VLR) are
    anchors near an object, weighted by their IoU with it (`valuable_region`). :math:`n_r = \sum_i w_{ri}` is
    averaged over processes, as gradients are.

    The head's anchors are not known here. Those of the VLR are the square ones of ATSS and GFL: one per
    position, ``anchor_scale`` strides wide, centered on multiples of the stride.

    The reference implementation does not divide by :math:`n_r`, so that its weight depends on the images per
    GPU and the objects in them, and takes the mean over the R = reg_max + 1 bins. ``normalizer='none'`` with
    ``main_weight=0.25 / R, vlr_weight=0.0625 / R`` is its value on each GPU. The defaults keep the proportion
    of the two; ten times as much drowned the task's losses and lost mAP (docs/results.md).

    Source: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022
    (https://arxiv.org/abs/2102.12252). Reference implementation: HikariTJU/LD (``ld_head.py``); mmdet's
    ``LDHead`` has its main region only. Where paper and implementation differ (weights, how near an object
    the VLR is, assigned priors within it) the defaults follow the latter.

    Args:
        loss_weight: λ ≥ 0.
        temperature: T > 0.
        region: ``'main'``, ``'vlr'``, ``'teacher'`` (all priors, weighted by the teacher's highest class
            score, as in CrossKD's GFL), or several in a list.
        main_weight: :math:`\lambda_\mathrm{main}` ≥ 0.
        vlr_weight: :math:`\lambda_\mathrm{vlr}` ≥ 0.
        teacher_weight: :math:`\lambda_\mathrm{teacher}` ≥ 0.
        normalizer: :math:`n_r`. ``'region'``: as above; ``'none'``: 1.
        alpha: 0 ≤ α < 1, how far the VLR reaches from the objects.
        vlr_nearness: by what overlap, `valuable_region`'s ``'iof'`` (reference implementation) or ``'iou'``
            (paper).
        anchor_scale: sides of the anchors in strides, ``octave_base_scale`` of the head's anchor generator.
        valid: which priors count, see `DistillLoss`; anchors of the VLR reach as far.

    Raises:
        UserError: an option is out of its range; the VLR meets a head with several priors per position; in
            the first iteration, if a head's boxes are not distributions, or of different lengths.
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
        choices_of_region = get_args(Region)
        if (
            not isinstance(regions, (list, tuple))
            or not regions
            or any(name not in choices_of_region for name in regions)
        ):
            raise _bad("region", f"one or more of {', '.join(choices_of_region)}", region)
        for name, choice, choices in (
            ("normalizer", normalizer, get_args(Normalizer)),
            ("vlr_nearness", vlr_nearness, get_args(Nearness)),
        ):
            if choice not in choices:
                raise _bad(name, f"one of {', '.join(choices)}", choice)
        for name, value in (("temperature", temperature), ("anchor_scale", anchor_scale)):
            if not _number(value) or not 0 < value < math.inf:
                raise _bad(name, "a number above 0", value)
        weights = {"main": main_weight, "vlr": vlr_weight, "teacher": teacher_weight}
        for name, value in ((f"{name}_weight", value) for name, value in weights.items()):
            if not _number(value) or not 0 <= value < math.inf:
                raise _bad(name, "a number ≥ 0", value)
        if not _number(alpha) or not 0 <= alpha < 1:
            raise _bad("alpha", "a number ≥ 0 and below 1", alpha)
        self.temperature = temperature
        self.weights = {name: weight for name, weight in weights.items() if name in regions and weight > 0}
        if not self.weights:
            raise UserError("LocalizationDistillationLoss: the weights of all its regions are 0")
        self.normalizer = normalizer
        self.alpha = alpha
        self.vlr_nearness = vlr_nearness
        self.anchor_scale = anchor_scale
        self.needs = frozenset({"bbox_pred"})
        if "main" in self.weights:
            self.needs |= {"cls_logits", "labels"}
            self.of_student = frozenset({"cls_logits"})
        if "teacher" in self.weights:
            self.needs |= {"cls_logits"}
            self.of_student = frozenset()

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse the VLR for a head with several priors per position, whose anchors are others."""
        if "vlr" in self.weights and set(student.num_base_priors) != {1}:
            raise user_error(
                "LocalizationDistillationLoss: the anchors of this head are not one square per position.",
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
            UserError: the boxes of a head are not distributions, or of different lengths.
        """
        student_ND, teacher_ND = student.flat_bbox_pred(), teacher.flat_bbox_pred()
        _check_distributions(student_ND.shape[1], teacher_ND.shape[1])
        total = torch.zeros((), device=student_ND.device)
        for name, factor in self.weights.items():
            weight_N = self._weight(name, student, teacher, context) * context.valid_N
            rows = weight_N.nonzero().squeeze(1)
            value_N = localization_kl(student_ND[rows], teacher_ND[rows], self.temperature)
            value = (weight_N[rows] * value_N).sum()
            if self.normalizer == "region":
                divisor = context.mean_over_processes(weight_N.sum())
                value = value / divisor.clamp(min=torch.finfo(torch.float32).eps)
            total = total + factor * value
        return self.loss_weight * total

    def _weight(
        self, region: str, student: DenseOutputs, teacher: DenseOutputs, context: DistillContext
    ) -> Tensor:
        if region == "teacher":
            return teacher.top_scores().detach()
        return self._main(student, context) if region == "main" else self._vlr(student, context)

    def _main(self, student: DenseOutputs, context: DistillContext) -> Tensor:
        return student.top_scores().detach() * is_object(student, context)

    def _vlr(self, student: DenseOutputs, context: DistillContext) -> Tensor:
        assert student.bbox_pred is not None
        weight_BHW = [
            torch.zeros(level.shape[0], *level.shape[-2:], device=level.device) for level in student.bbox_pred
        ]
        device = weight_BHW[0].device
        for image, sample in enumerate(context.data_samples):
            height, width = (sample.img_shape if self.valid == "image" else sample.pad_shape)[:2]
            # Positions in the padding would move the thresholds; the sizes are known without asking the GPU.
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
            raise user_error(
                f"LocalizationDistillationLoss: the {whose}'s boxes are not distributions.",
                expected="4·(reg_max + 1) box channels per prior, as in GFLHead",
                found=f"{D} box channels",
                remedy="use GFLHead for both, or distil the boxes with BoxIoULoss",
            )
    if student_D != teacher_D:
        raise user_error(
            "LocalizationDistillationLoss: the distributions of student and teacher differ in length.",
            expected=f"reg_max={teacher_D // 4 - 1} (the teacher's)",
            found=f"reg_max={student_D // 4 - 1} (the student's)",
            remedy="set reg_max of the student's head to the teacher's, or distil the boxes with BoxIoULoss",
        )


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad(name: str, expected: str, found: object) -> UserError:
    return UserError(f"LocalizationDistillationLoss: {name} must be {expected}, found {found!r}")
