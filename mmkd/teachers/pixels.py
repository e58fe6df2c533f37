"""Converts the student's normalised pixels to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.errors import UserError


class Renormalizer:
    """Convert pixels to those of the teacher's own data preprocessor.

    With the student's pixels :math:`(x - m_s) / s_s` and, where only one of the
    two swaps red and blue, the channels reversed, the result is
    :math:`(x - m_t) / s_t`. Padding takes the teacher's padding value.

    Args:
        student: the student's data preprocessor.
        teacher: the teacher's.
        channels: channels of the teacher's images; by default the student's.
    """

    def __init__(self, student: Any, teacher: Any, channels: int | None = None) -> None:
        self.channels = channels
        mean_s, std_s = _mean_std(student)
        mean_t, std_t = _mean_std(teacher)
        self.swap = _swaps(student) != _swaps(teacher)
        if self.swap:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        self.scale = std_s / std_t
        self.shift = (mean_s - mean_t) / std_t
        self.pad_value = float(getattr(teacher, "pad_value", 0))
        self.repads = self.pad_value != float(getattr(student, "pad_value", 0))

    @property
    def is_identity(self) -> bool:
        """Whether teacher and student get the same pixels."""
        return not (self.swap or self.repads or self._rescales)

    @property
    def _rescales(self) -> bool:
        return bool((self.scale != 1).any() or (self.shift != 0).any())

    def __call__(self, inputs_BCHW: Tensor, image_shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """The teacher's input.

        Args:
            inputs_BCHW: the student's input. Grey images are repeated for a teacher with three channels.
            image_shapes: (height, width) of each image without padding.

        Raises:
            UserError: the teacher does not accept images with this number of channels.
        """
        if self.channels is not None and inputs_BCHW.shape[1] != self.channels:
            if inputs_BCHW.shape[1] != 1:
                raise UserError(
                    "Teacher and student expect different numbers of image channels.",
                    expected=f"{inputs_BCHW.shape[1]} (the student's)",
                    found=f"{self.channels} (the teacher's)",
                    remedy="choose a teacher trained on images like the student's",
                )
            inputs_BCHW = inputs_BCHW.expand(-1, self.channels, -1, -1)
        if self.is_identity:
            return inputs_BCHW
        if self.swap:
            inputs_BCHW = inputs_BCHW.flip(1)
        scale, shift = self.scale.to(inputs_BCHW), self.shift.to(inputs_BCHW)
        result = inputs_BCHW * scale + shift
        for image_CHW, (height, width, *_) in zip(result, image_shapes):
            image_CHW[:, height:] = self.pad_value
            image_CHW[:, :, width:] = self.pad_value
        return result


def to_rgb(
    preprocessor: Any, inputs_BCHW: Tensor, image_shapes: Sequence[tuple[int, ...]]
) -> list[NDArray[np.uint8]]:
    """Recover the images, without padding, from a data preprocessor's batch.

    Args:
        preprocessor: the student's. If it does not convert channels, the pipeline's images are BGR, as loaded
            by `LoadImageFromFile`.
        inputs_BCHW: the preprocessor's output.
        image_shapes: (height, width) of each image without padding.

    Returns:
        Each image as uint8 H×W×3 in RGB.
    """
    mean, std = _mean_std(preprocessor)
    pixels_BCHW = inputs_BCHW.float() * std.to(inputs_BCHW) + mean.to(inputs_BCHW)
    if pixels_BCHW.shape[1] == 1:
        pixels_BCHW = pixels_BCHW.expand(-1, 3, -1, -1)
    if not _swaps(preprocessor):
        pixels_BCHW = pixels_BCHW.flip(1)
    images = pixels_BCHW.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [image[:height, :width] for image, (height, width, *_) in zip(images, image_shapes)]


def _mean_std(preprocessor: Any) -> tuple[Tensor, Tensor]:
    if not getattr(preprocessor, "_enable_normalize", False):
        return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    return preprocessor.mean.detach().float().cpu(), preprocessor.std.detach().float().cpu()


def _swaps(preprocessor: Any) -> bool:
    return bool(getattr(preprocessor, "_channel_conversion", False))
