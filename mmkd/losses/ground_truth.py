"""The annotated objects of an image, as losses read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gt_boxes(sample: Any, device: torch.device) -> Tensor:
    """The boxes of an mmdet data sample, (G, 4) float: x1, y1, x2, y2 in pixels of the input."""
    boxes = sample.gt_instances.bboxes
    boxes = getattr(boxes, "tensor", boxes)  # mmdet's box types hold a tensor
    return torch.as_tensor(boxes, device=device).reshape(-1, 4)


def gt_labels(sample: Any, device: torch.device) -> Tensor:
    """Their class indices, (G,)."""
    return torch.as_tensor(sample.gt_instances.labels, device=device).reshape(-1)


def input_size(sample: Any) -> tuple[int, int]:
    """(height, width) of the network's input: the image with its padding, if known."""
    height, width = (sample.metainfo.get("batch_input_shape") or sample.metainfo["img_shape"])[:2]
    return int(height), int(width)
