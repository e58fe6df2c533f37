"""Features of any detector: the neck's output, or the encoder's for transformers.

Grounding DINO's encoder also reads a text; its features are the neck's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from mmdet.models.detectors import DetectionTransformer
from mmdet.structures import DetDataSample
from torch import Tensor

from mmkd.errors import UserError
from mmkd.heads import adapter_for
from mmkd.heads.calls import Calls
from mmkd.outputs.example import example_pixels
from mmkd.outputs.transformers import Encoded
from mmkd.structures import HeadSpec, Levels


def dense_head(detector: Any) -> Any:
    """The head with predictions at each position: ``bbox_head``, or the RPN of a two-stage detector.

    Raises:
        UserError: the detector has none.
    """
    for name in ("rpn_head", "bbox_head"):
        if hasattr(detector, name):
            return getattr(detector, name)
    raise UserError(
        f"{type(detector).__name__} has no dense head.",
        expected="a detector with a bbox_head or an rpn_head, for losses on its outputs",
        found=", ".join(name for name, _ in detector.named_children()),
        remedy="use feature losses (PKDLoss, CWDLoss, …)",
    )


def encode(detector: Any, pixels_BCHW: Tensor, image_shapes: Sequence[tuple[int, ...]]) -> tuple[Levels, Any]:
    """The features of a batch.

    Args:
        detector: any detector.
        pixels_BCHW: normalised and padded images.
        image_shapes: (height, width) of each without padding.

    Returns:
        Per level B×C×H×W, and what the detector's later heads need.
    """
    feats = tuple(detector.extract_feat(pixels_BCHW))
    if not has_own_memory(detector):
        return tested_branch(detector, feats, len(pixels_BCHW)), feats
    samples = [
        DetDataSample(metainfo={"img_shape": shape, "batch_input_shape": tuple(pixels_BCHW.shape[-2:])})
        for shape in image_shapes
    ]
    dtype = next(detector.encoder.parameters()).dtype
    # `pre_transformer` views each map as a sequence.
    feats = tuple(feat.to(dtype).contiguous() for feat in feats)
    encoder_inputs, _ = detector.pre_transformer(feats, samples)
    memory = detector.forward_encoder(**encoder_inputs)
    return memory_levels(memory["memory"], feats), Encoded(feats, samples, memory)


class Recorded:
    """What a student's own methods returned during one loss."""

    def __init__(self) -> None:
        self.feats: Calls[Sequence[Tensor]] = Calls()
        self.memory: Calls[Mapping[str, Any]] = Calls()

    def neck(self) -> Levels:
        """The neck's output, per level B×C×H×W: the very tensors that all its losses depend on."""
        return tuple(next(iter(self.feats)))

    def levels(self) -> Levels:
        """The student's features, per level B×C×H×W."""
        feats = self.neck()
        memory = next(iter(self.memory), None)
        return feats if memory is None else memory_levels(memory["memory"], feats)


def has_own_memory(detector: Any) -> bool:
    """Whether the detector has an encoder whose output depends only on the image, not also on a text."""
    return isinstance(detector, DetectionTransformer) and not hasattr(detector, "language_model")


def tested_branch(detector: Any, feats: Levels, images: int) -> Levels:
    """The features of each image once: from the branch that TridentNet uses in testing."""
    if len(feats[0]) == images:
        return feats
    return tuple(level.unflatten(0, (-1, images))[detector.test_branch_idx] for level in feats)


def memory_levels(memory_BNC: Tensor, feats: Levels) -> Levels:
    """An encoder's memory, reshaped to feature maps of the original sizes."""
    first = next(
        first
        for first in reversed(range(len(feats)))
        if sum(feat[0, 0].numel() for feat in feats[first:]) == memory_BNC.shape[1]
    )
    sizes = [feat.shape[-2:] for feat in feats[first:]]
    parts = memory_BNC.split([height * width for height, width in sizes], dim=1)
    return tuple(part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes))


def dense_layout(detector: Any) -> HeadSpec:
    """The output layout of a detector's dense head.

    Raises:
        UserError: it has no supported dense head.
    """
    head = dense_head(detector)
    return adapter_for(head).spec(head)


def has_dense_head(detector: Any) -> bool:
    """Whether a one-stage detector's head reports its layout."""
    if hasattr(detector, "rpn_head"):
        return False
    with suppress(UserError):
        dense_layout(detector)
        return True
    return False


@torch.no_grad()
def layout_of_features(detector: Any, pixels_BCHW: Tensor) -> HeadSpec:
    """The layout of the features only: strides and widths.

    Args:
        detector: any detector. A dense head's own strides take precedence (SSD's are not round).
        pixels_BCHW: an image that the detector accepts.
    """
    feats, _ = encode(detector, pixels_BCHW, [tuple(pixels_BCHW.shape[-2:])] * len(pixels_BCHW))
    strides = tuple((round(pixels_BCHW.shape[-1] / feat.shape[-1]),) * 2 for feat in feats)
    return HeadSpec(
        num_classes=0,
        cls_channels=0,
        use_sigmoid=True,
        strides=dense_layout(detector).strides if has_dense_head(detector) else strides,
        num_base_priors=(0,) * len(feats),
        in_channels=tuple(feat.shape[1] for feat in feats),
    )


@torch.no_grad()
def student_layout(student: Any) -> HeadSpec:
    """A student's layout: its dense head's, or that of its features for an example image.

    Args:
        student: any detector; train and eval modes are restored.
    """
    if has_dense_head(student):
        return dense_layout(student)
    modes = [(module, module.training) for module in student.modules()]
    try:
        student.eval()
        with torch.random.fork_rng(devices=[]):
            pixels = example_pixels(student, lambda x: encode(student, x, [tuple(x.shape[-2:])]))
            return layout_of_features(student, pixels)
    finally:
        for module, training in modes:
            module.training = training
