"""Cases with annotated objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from .contract import Case, make_case

Box = tuple[float, float, float, float]


def sample(
    boxes: Sequence[Box], labels: Sequence[int] | None = None, size: tuple[int, int] = (32, 40), **meta: Any
) -> DetDataSample:
    """An mmdet data sample of an image of (height, width) with boxes and their classes."""
    found = DetDataSample(metainfo={"img_shape": size, "batch_input_shape": size, **meta})
    found.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels if labels is not None else [0] * len(boxes), dtype=torch.long),
    )
    return found


def case_with_objects(*samples: DetDataSample, **options: Any) -> Case:
    """`make_case` with data samples; two images with objects if none are given."""
    samples = samples or (
        sample([(3, 5, 22, 19), (10, 8, 38, 30)], [1, 2]),
        sample([(0, 0, 16, 24)], [0]),
    )
    student, teacher, context = make_case(**{"images": len(samples), **options})
    return student, teacher, replace(context, data_samples=list(samples))
