"""Finds an example image for a detector, to learn the layout of its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkd.errors import UserError
from mmkd.heads import is_deformable

# SSD300 needs the second size, a deformable convolution at stride 128 the third.
_SIDES = (128, 320, 384, 640, 1024)


@torch.no_grad()
def example_pixels(model: Any, run: Callable[[Tensor], Any]) -> Tensor:
    """The smallest image, 1×C×side×side, that a detector accepts; the detector stays on its device.

    Args:
        model: in eval mode, on the CPU.
        run: the part of its forward that is used.

    Raises:
        UserError: it accepts none.
    """
    first: Exception | None = None
    sides = _SIDES[2:] if is_deformable(model) else _SIDES
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]  # CARAFE does not run on CPUs
    lacking = set()  # devices on which a layer is not implemented
    for device, side, channels in itertools.product(devices, sides, _input_widths(model)):
        if device in lacking:
            continue
        pixels = torch.linspace(-2, 2, channels * side * side).reshape(1, channels, side, side).to(device)
        try:
            model.to(device)
            run(pixels)
        except Exception as error:  # mmcv's and mmdet's layers raise all kinds of errors
            if first is None or "got 3 channels" in str(first):
                first = error  # the error for an image of the right width says more
            if "implementation for device" in str(error):
                lacking.add(device)
            continue
        if first is not None:
            print_log(
                f"test run of {type(model).__name__} with images of {channels}×{side}×{side} on {device}",
                "current",
            )
        return pixels
    raise UserError(
        f"A test run of {type(model).__name__} failed.",
        expected=f"its forward to accept a square image of {_SIDES[0]} to {_SIDES[-1]} pixels",
        found=f"{type(first).__name__}: {first}",
        remedy="check its config, for example with mmdet's tools/test.py",
    ) from first


def _input_widths(model: Any) -> list[int]:
    """The channel counts to try for images; YOLOX's first layer folds four pixels into channels."""
    kernels = (p for p in model.backbone.parameters() if p.dim() == 4) if hasattr(model, "backbone") else ()
    first = next((kernel.shape[1] for kernel in kernels), 3)
    return list(dict.fromkeys([3, first, max(first // 4, 1)]))
