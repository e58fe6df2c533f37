"""Batches in which some images have no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.dist import all_reduce, get_world_size
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.data import is_labelled
from mmkd.detectors.other_targets import retargeted
from mmkd.detectors.views import teachers_view
from mmkd.outputs import encode, of_images, with_features


@torch.compiler.disable
def any_unlabelled(inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> bool:
    """Whether the batch of any process has an image without labels; all processes get the same answer."""
    here = not all(map(is_labelled, data_samples))
    if get_world_size() == 1:
        return here
    anywhere = torch.tensor(int(here), device=inputs_BCHW.device)
    all_reduce(anywhere, op="max")
    return bool(anywhere)


@torch.compiler.disable(recursive=False)
def mixed_loss(
    detector: Any, own_loss: Callable[..., Any], batch_inputs: Tensor, batch_data_samples: list[Any]
) -> dict[str, Any]:
    """As `Distilled.loss`, for a batch with images without labels in some process.

    Backbone and neck run once. If a distillation loss reads more than features, the heads first run on the
    whole batch, watched as usual, and their losses are discarded; then they run on the labelled images. A
    process without labelled images uses one image without objects, times 0: mmdet's losses synchronise
    processes.

    Args:
        detector: the `Distilled` one.
        own_loss: the ``loss`` of the student's own class.
        batch_inputs: B×C×H×W, normalised and padded.
        batch_data_samples: mmdet's data samples.
    """
    labelled = [index for index, sample in enumerate(batch_data_samples) if is_labelled(sample)]
    index = labelled or [0]
    own_inputs = batch_inputs[index]
    own_samples = [batch_data_samples[i] for i in labelled]
    own_samples = own_samples or [without_objects(batch_data_samples[0], batch_inputs)]
    active = detector.active_terms()
    if not active:  # no loss uses the unlabelled images
        batch_inputs, batch_data_samples = own_inputs, own_samples
    step = detector._begin(batch_inputs, batch_data_samples)
    try:
        batch_data_samples = _targets(detector, step, batch_inputs, batch_data_samples)
        if not active:
            losses = own_loss(own_inputs, own_samples)
        elif detector._reads_heads(active):
            own_loss(batch_inputs, batch_data_samples)
        else:
            encode(detector, batch_inputs, [sample.img_shape for sample in batch_data_samples])
            step = replace(step, dense=None)
    finally:
        detector.recorded = None
        step.close()
    if active:
        feats = next(iter(step.student.feats))
        with with_features(detector, of_images(feats, index, len(batch_inputs))):
            losses = own_loss(own_inputs, own_samples)
    if not labelled:
        losses = times_zero(losses, detector.parameters())
    total: dict[str, Any] = detector._add_terms(losses, step, batch_inputs, batch_data_samples)
    return total


@torch.compiler.disable
def _targets(detector: Any, step: Any, batch_inputs: Tensor, batch_data_samples: list[Any]) -> list[Any]:
    """The samples; images without labels get the teacher's boxes if a loss needs objects."""
    index = [i for i, sample in enumerate(batch_data_samples) if not is_labelled(sample)]
    targets = [copied(sample) for sample in batch_data_samples]  # the student's losses may change them
    asked = (teacher for teacher, names in step.asked if any(map(detector._depends_on_objects, names)))
    teacher = next(asked, None)
    if teacher is None or not index:
        for i in index:
            targets[i] = without_objects(targets[i], batch_inputs)
        return targets
    samples = [targets[i] for i in index]
    teacher = getattr(teacher, "members", [teacher])[0]  # boxes cannot be averaged
    with torch.autocast(batch_inputs.device.type, enabled=False):
        found = teacher.detect(teachers_view(detector, batch_inputs[index], samples), samples)
    for i, boxes in zip(index, found, strict=True):
        targets[i] = with_boxes(targets[i], boxes[boxes.scores >= detector.pseudo_score])
    return targets


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
