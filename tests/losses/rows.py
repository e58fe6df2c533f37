"""Every loss on rows in every region and with every normalizer, and cases that all of them can read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import torch

from mmkd.losses import DistillLoss
from mmkd.losses.ld import Region as RegionOfDistributions
from mmkd.losses.row_base import Normalizer, Region
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, RowOutputs

from .contract import Case, make_case
from .objects import case_with_objects, sample

# By name, the part of the outputs whose gradient is the loss's.
PARTS = {
    "DistillationLoss": "cls_logits",
    "BCKDLoss": "cls_logits",
    "DKDLoss": "cls_logits",
    "DISTLoss": "cls_logits",
    "BoxIoULoss": "boxes",
    "BoxL1Loss": "boxes",
    "QualityLoss": "centerness",
    "LocalizationDistillationLoss": "bbox_pred",
}
REGIONS = [
    (name, region)
    for name in PARTS
    for region in get_args(RegionOfDistributions if name.startswith("Local") else Region)
]
NORMALIZERS: tuple[str, ...] = get_args(Normalizer)


def row_loss(name: str, loss_weight: float = 1.0, **options: Any) -> DistillLoss:
    loss: DistillLoss = MODELS.build({"type": name, "loss_weight": loss_weight, **options})
    return loss


def row_case(name: str, images: int = 2, num_classes: int = 3) -> Case:
    """Few priors, with all that the loss may read."""
    if name == "LocalizationDistillationLoss":
        boxes = [[(3, 5, 22, 19), (10, 8, 38, 30)], [(0, 0, 16, 24)]][:images]
        samples = [sample(each, pad_shape=(40, 48)) for each in boxes]
        case = case_with_objects(*samples, num_classes=num_classes, priors=1, box_channels=4 * 5)
    else:
        # One channel more for the background, which DKD takes as a class, and one label more for no class.
        extra = int(name == "DKDLoss")
        case = make_case(num_classes + extra, sizes=((2, 3), (1, 2)), images=images)
        if extra:
            student, teacher, context = case
            spec = replace(student.spec, num_classes=num_classes, use_sigmoid=False)
            case = replace(student, spec=spec), replace(teacher, spec=spec), context
    student, teacher, context = case
    generator = torch.Generator().manual_seed(7)
    more_N = torch.rand(len(context.valid_N), generator=generator) > 0.5
    return (
        student,
        teacher,
        replace(
            context,
            padded_N=context.valid_N | more_N,
            scored_N=context.valid_N & more_N,
            quality_sum=torch.tensor(2.25),
        ),
    )


def flat(outputs: DenseOutputs) -> RowOutputs:
    """The same predictions as rows that are no maps."""
    return RowOutputs(
        replace(outputs.spec, strides=(), num_base_priors=()),
        outputs.flat_cls_logits(),
        outputs.flat_boxes(),
        {name: outputs.flat_extra(name) for name in outputs.extra},
        image_N=outputs.image_N,
    )
