"""Detections per image: boxes with labels and scores.

Shape suffixes: M boxes of one image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.errors import UserError
from mmkd.outputs.with_features import with_features


def detections(
    bboxes_M4: Tensor, scores_M: Tensor, labels_M: Tensor, class_scores_MK: Tensor | None = None
) -> InstanceData:
    """An image's detections, in the form that teachers return.

    Args:
        bboxes_M4: x1, y1, x2, y2 in pixels of the input.
        scores_M: in [0, 1].
        labels_M: class indices.
        class_scores_MK: a score in [0, 1] for each class, if available.
    """
    found = InstanceData(bboxes=bboxes_M4, scores=scores_M, labels=labels_M)
    if class_scores_MK is not None:
        found.class_scores = class_scores_MK
    return found


def within(found: InstanceData, shape: Sequence[int]) -> InstanceData:
    """Detections clipped to their image, without empty boxes.

    Args:
        found: the detections of one image.
        shape: the image's (height, width).

    Example:
        >>> two = detections(torch.tensor([[-5.0, 0, 9, 9], [20, 0, 30, 9]]), torch.ones(2), torch.arange(2))
        >>> within(two, (8, 16)).bboxes
        tensor([[0., 0., 9., 8.]])
    """
    height, width = shape[:2]
    limit_4 = found.bboxes.new_tensor([width, height, width, height])
    clipped_M4 = torch.minimum(found.bboxes.nan_to_num(0.0).clamp(min=0), limit_4)
    whole_M = (clipped_M4[:, 2:] > clipped_M4[:, :2]).all(dim=1)
    kept = found[whole_M]
    kept.bboxes = clipped_M4[whole_M]
    return kept


def of_classes(found: InstanceData, index: Sequence[int]) -> InstanceData:
    """Keep only detections of the given classes, and renumber them in this order.

    Args:
        found: the detections of one image.
        index: for each of the student's classes, its index in the detections.

    Example:
        >>> two = detections(torch.zeros(2, 4), torch.tensor([0.9, 0.8]), torch.tensor([5, 1]))
        >>> of_classes(two, [1, 5]).labels, of_classes(two, [1]).scores
        (tensor([1, 0]), tensor([0.8000]))
    """
    labels_M = torch.full_like(found.labels, -1)
    for own, theirs in enumerate(index):
        labels_M[found.labels == theirs] = own
    kept = found[labels_M >= 0]
    kept.labels = labels_M[labels_M >= 0]
    if "class_scores" in kept:
        kept.class_scores = kept.class_scores[:, list(index)]
    return kept


def detect(detector: Any, pixels_BCHW: Tensor, image_shapes: Sequence[Any], feats: Any = None) -> list[Any]:
    """An mmdet detector's predictions for a batch, after its own NMS.

    Args:
        detector: in eval mode.
        pixels_BCHW: input images.
        image_shapes: (height, width) of each image without padding.
        feats: its ``extract_feat`` output for these images, if known.

    Returns:
        For each image its `detections`, in pixels of the input and within the image.

    Raises:
        UserError: the detector raises an error.
    """
    padded = tuple(pixels_BCHW.shape[-2:])
    samples = [
        DetDataSample(
            metainfo={
                "img_shape": tuple(shape[:2]),
                "ori_shape": tuple(shape[:2]),
                "batch_input_shape": padded,
                "pad_shape": padded,
                "scale_factor": (1.0, 1.0),
            }
        )
        for shape in image_shapes
    ]
    if feats is None:
        feats = detector.extract_feat(pixels_BCHW)
    try:
        with with_features(detector, feats):
            predicted = [one.pred_instances for one in detector.predict(pixels_BCHW, samples, rescale=False)]
    except Exception as error:  # mmdet 3.3's SSDHead cannot predict
        raise UserError(
            f"The teacher {type(detector).__name__} cannot predict boxes.",
            expected="a detector with a working `predict`",
            found=f"{type(error).__name__}: {error}",
            remedy="choose another teacher for TeacherBoxesLoss and place='boxes'",
        ) from error
    return [
        within(detections(found.bboxes.float(), found.scores.float(), found.labels), shape)
        for found, shape in zip(predicted, image_shapes, strict=True)
    ]
