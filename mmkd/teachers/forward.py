"""`Forward`: a teacher's forward pass, made cheaper without changing its outputs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkd.heads import adapter_for, is_deformable, misreads_channels_last
from mmkd.heads.towers import record_towers, with_towers
from mmkd.outputs import dense_head, encode, example_pixels
from mmkd.outputs.features import layout_of_features
from mmkd.structures import OF_CONTEXT, DenseOutputs, Need
from mmkd.teachers.acceleration import (
    Precision,
    alike,
    choose_dtype,
    compiled,
    fold_batch_norm,
    has_shifted_windows,
)
from mmkd.teachers.building import leave_out_heads
from mmkd.teachers.pruning import skip_unread

Shapes = Sequence[tuple[int, ...]]
_NOT_COMPUTED: frozenset[Need] = OF_CONTEXT | {"boxes", "towers", "places", "detections"}
# Other layouts and orders of float32 sums, with TF32 on a GPU, differ less; a wrong fold differs far more.
_ALIKE = 1e-2


def computed(needs: frozenset[Need]) -> frozenset[Need]:
    """The outputs the model must compute; boxes are decoded from the head's box output."""
    boxes: frozenset[Need] = frozenset({"bbox_pred"} if "boxes" in needs else ())
    return (needs - _NOT_COMPUTED) | boxes


class Forward:
    """The part of a detector's forward pass that losses read.

    Args:
        model: in eval mode, on the CPU.
        needs: the parts of `DenseOutputs` that the losses read.
        precision: see `choose_dtype`.
        compiles: whether to run it with `torch.compile`.

    Attributes:
        model: the detector.
        needs: the parts that it computes.
        reads_head: whether these include outputs of the dense head.
        dtype: the dtype it computes in.
        spec: the layout of its outputs.
        layout: the memory format of its weights and images.
        device: the device it is prepared for; ``None`` before the first batch.
        unconfirmed: whether it was made cheaper but not yet verified on a real image.
    """

    def __init__(
        self, model: Any, needs: frozenset[Need], precision: Precision = "fp32", compiles: bool = False
    ) -> None:
        self.model = model
        self.needs = computed(needs)
        self.reads_head = bool(self.needs - {"feats"})
        self._gives_towers = "towers" in needs
        self._gives_inner = bool(needs & {"places", "detections"})
        self._keeps_all = bool(needs & {"layers", "places", "detections"})
        if self.reads_head:
            self.adapter = adapter_for(self.head)
        self.precision, self._compiles = precision, compiles
        self.deformable, self.windows = is_deformable(model), has_shifted_windows(model)
        self._run: Callable[[Tensor, Any], tuple[Any, Any, Any]] = self._forward
        self._as_built: Any = None
        self.layout = torch.contiguous_format
        self.device: torch.device | None = None
        self.dtype = torch.float32
        if self.reads_head:
            self.spec = self.adapter.spec(self.head)
        else:
            self.spec = layout_of_features(model, self.example)

    @property
    def head(self) -> Any:
        """The dense head."""
        return dense_head(self.model)

    @property
    def unconfirmed(self) -> bool:  # noqa: D102  (see the class)
        return self._as_built is not None

    @cached_property
    def example(self) -> Tensor:
        """An image that the model accepts, 1×C×H×W."""
        return example_pixels(self.model, lambda pixels: self._forward(pixels, shapes_of(pixels)))

    @torch.no_grad()
    def for_example(self) -> DenseOutputs:
        """The outputs for the example."""
        return self(self.example, shapes_of(self.example))

    def make_cheaper(self) -> tuple[list[str], bool]:
        """Skip unread layers, fold BatchNorm, choose the weights' memory format; verified with the example.

        Returns:
            The names of the layers left out, and whether anything was folded.
        """
        example = self.example
        self._as_built = copy.deepcopy(self.model)
        left_out: list[str] = []
        if not self._keeps_all:
            left_out = self._skip_unread() if self.reads_head else leave_out_heads(self.model)
        folded = fold_batch_norm(self.model, lambda: self._outputs(example, shapes_of(example)).levels())
        # mmcv's folding creates new layers.
        self.model.requires_grad_(False)
        self.model.eval()
        # RoI heads take their regions from copies in the default format.
        bound = any(
            misreads_channels_last(x) for name, x in self.model.named_children() if name != "roi_head"
        )
        self.layout = torch.contiguous_format if bound else torch.channels_last
        self.model.to(memory_format=self.layout)
        return left_out, folded

    @torch.no_grad()
    def confirm(self, pixels_BCHW: Tensor, image_shapes: Shapes) -> bool:
        """Run a real image both ways, in float32; if the answers differ, go back to the original model.

        Args:
            pixels_BCHW: the image, of another size than the example. The model moves to its device.
            image_shapes: (height, width) without padding.

        Returns:
            Whether it stays cheaper; if not, the log says why.
        """
        cheaper, as_built, self._as_built = self.model, self._as_built, None
        self.model = as_built.to(pixels_BCHW.device)
        wanted = self._outputs(pixels_BCHW, image_shapes).levels()
        self.model = cheaper.to(pixels_BCHW.device)
        try:
            found = self(pixels_BCHW, image_shapes).levels()
            why = "" if alike(found, wanted, _ALIKE) else "its output for the first image differed"
        except Exception as error:  # mmcv's and mmdet's layers raise all kinds of errors
            why = f"it failed on the first image: {type(error).__name__}: {error}".splitlines()[0]
        if not why:
            return True
        self.model, self.layout = as_built, torch.contiguous_format
        print_log(
            "the teacher runs with all its layers, unoptimised. Without the unused layers and "
            f"with BatchNorm folded, {why}",
            "current",
            logging.WARNING,
        )
        return False

    def make_ready(self, device: torch.device) -> None:
        """Move to a device, and to the dtype used there."""
        if self.model.training:
            self.model.eval()
        if device == self.device:
            return
        self.device = device
        self.dtype, reason = self.choose_dtype(device)
        self.model.to(device, self.dtype)
        for name, part in self.model.named_children():
            # RoIAlign and attention do not support half precision everywhere; their inputs are cast.
            if name not in ("backbone", "neck") and not (self.reads_head and part is self.head):
                part.float()
        if self._compiles:
            self._run = compiled(self._forward)
        print_log(
            f"the teacher runs in {self.dtype} on {device}: {reason}"
            + (", compiled" if self._compiles else ""),
            logger="current",
        )

    def choose_dtype(self, device: torch.device) -> tuple[torch.dtype, str]:
        """The dtype on a device, and the reason."""
        return choose_dtype(self.precision, device, deformable=self.deformable, windows=self.windows)

    def __call__(self, pixels_BCHW: Tensor, image_shapes: Shapes) -> DenseOutputs:
        """The outputs that the losses read, in the model's dtype.

        Args:
            pixels_BCHW: the teacher's own input, in its dtype.
            image_shapes: (height, width) of each image without padding.
        """
        try:
            return self._outputs(pixels_BCHW.to(memory_format=self.layout), image_shapes)
        except RuntimeError as error:  # weight-standardised convolutions view their weights
            if self.layout == torch.contiguous_format:
                raise
            with torch.inference_mode(False):  # weights made in inference mode would block gradients
                self.model.to(memory_format=torch.contiguous_format)
            outputs = self._outputs(pixels_BCHW.contiguous(), image_shapes)
            self.layout = torch.contiguous_format
            print_log(
                "the teacher runs in the default memory format; in channels-last it fails: "
                f"{str(error).splitlines()[0]}",
                "current",
            )
            return outputs

    def _outputs(self, pixels_BCHW: Tensor, image_shapes: Shapes) -> DenseOutputs:
        if self._gives_towers:
            with record_towers(self.head) as towers:
                return with_towers(self._sorted(*self._run(pixels_BCHW, image_shapes)), towers)
        return self._sorted(*self._run(pixels_BCHW, image_shapes))

    def _sorted(self, feats: Any, inner: Any, raw: Any) -> DenseOutputs:
        inner = inner if self._gives_inner else None
        if not self.reads_head:
            return DenseOutputs(spec=self.spec, feats=tuple(feats), inner=inner)
        return replace(self.adapter.outputs(self.head, feats, raw, self.needs), inner=inner)

    def _forward(self, pixels_BCHW: Tensor, image_shapes: Shapes) -> tuple[Any, Any, Any]:
        feats, inner = encode(self.model, pixels_BCHW, image_shapes)
        return feats, inner, self.head(feats) if self.reads_head else None

    def _skip_unread(self) -> list[str]:
        head = self.head
        with torch.no_grad():
            feats, _ = encode(self.model, self.example, shapes_of(self.example))

        def read(raw: Any) -> list[Tensor]:
            outputs = self.adapter.outputs(head, feats, raw, self.needs)
            return outputs.levels()[len(feats) :]

        return [f"bbox_head.{name}" for name in skip_unread(head, feats, read)]


def shapes_of(pixels_BCHW: Tensor) -> Shapes:
    """The shapes of images without padding."""
    return [tuple(pixels_BCHW.shape[-2:])] * len(pixels_BCHW)
