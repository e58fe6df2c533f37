"""Batches in which some images have no labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.dist import all_reduce, get_world_size
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.data import is_labelled
from mmkd.detectors.other_targets import retargeted


@torch.compiler.disable
def any_unlabelled(inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> bool:
    """Whether the batch of any process has an image without labels; all processes get the same answer."""
    here = not all(map(is_labelled, data_samples))
    if get_world_size() == 1:
        return here
    anywhere = torch.tensor(int(here), device=inputs_BCHW.device)
    all_reduce(anywhere, op="max")
    return bool(anywhere)


def with_boxes(sample: Any, found: InstanceData) -> Any:
    """A copy of a sample with these boxes as its annotated objects.

    Args:
        sample: mmdet's data sample, with ``gt_instances``.
        found: ``bboxes`` (G, 4) and ``labels`` (G,). If the sample has masks, the new ones fill their boxes;
            other attributes of objects are 0.
    """
    own, boxes_G4 = sample.gt_instances, found.bboxes
    objects = InstanceData(bboxes=boxes_G4, labels=found.labels)
    if "bboxes" in own and not isinstance(own.bboxes, Tensor):  # an mmdet box type
        objects.bboxes = type(own.bboxes)(boxes_G4)
    if "masks" in own:
        objects.masks = _whole_boxes(boxes_G4, own.masks)
    for name, part in own.items():
        if name not in objects and isinstance(part, Tensor):
            objects[name] = part.new_zeros(len(objects), *part.shape[1:])
    return retargeted(sample, objects, InstanceData(bboxes=boxes_G4[:0], labels=found.labels[:0]))


def without_objects(sample: Any, inputs_BCHW: Tensor) -> Any:
    """A copy of a sample without objects, on the device of the batch."""
    boxes_G4 = torch.zeros(0, 4, device=inputs_BCHW.device)
    return with_boxes(sample, InstanceData(bboxes=boxes_G4, labels=boxes_G4.new_zeros(0, dtype=torch.long)))


def times_zero(losses: Mapping[str, Any], parameters: Iterable[Tensor]) -> dict[str, Any]:
    """Losses times 0, with a zero gradient for every parameter, so that other processes do not hang.

    Args:
        losses: those of an image without objects, from which some heads learn nothing.
        parameters: the student's parameters.
    """
    nothing = sum(parameter.sum() * 0 for parameter in parameters if parameter.requires_grad)
    result = dict(losses)
    for key, value in losses.items():
        if "loss" in key:
            result[key] = [part * 0 for part in value] if isinstance(value, (list, tuple)) else value * 0
    first = next(key for key in losses if "loss" in key)
    value = result[first]
    result[first] = [value[0] + nothing, *value[1:]] if isinstance(value, list) else value + nothing
    return result


def copied(sample: Any) -> Any:
    """A copy of a sample whose objects may be changed, as some heads do in their loss."""
    copy = sample.new()
    copy.gt_instances = sample.gt_instances.new()
    return copy


def _whole_boxes(boxes_G4: Tensor, masks: Any) -> Any:
    """Masks that fill their boxes, of the same type and size as the given ones."""
    height, width = masks.height, masks.width
    corners = boxes_G4.detach().cpu().numpy()
    if isinstance(masks, PolygonMasks):
        polygons = [[np.array([x, y, X, y, X, Y, x, Y])] for x, y, X, Y in corners]
        return PolygonMasks(polygons, height, width)
    bits = np.zeros((len(corners), height, width), dtype=np.uint8)
    for one, (x, y, X, Y) in zip(bits, corners.round().astype(int).clip(min=0)):
        one[y:Y, x:X] = 1
    return BitmapMasks(bits, height, width)
