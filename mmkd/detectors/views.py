"""Builds the teacher's view, if it differs from the student's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkd.data import VIEW
from mmkd.errors import UserError


@torch.no_grad()
def teachers_view(student: Any, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Tensor:
    """The student's input, with the teacher's images for samples that have one, see `mmkd.data.PackTwoViews`.

    Args:
        student: the student; its data preprocessor normalises the images.
        inputs_BCHW: the student's normalised and padded input.
        data_samples: those of the batch.

    Raises:
        UserError: the data preprocessor has resized the student's images.
    """
    views = {index: sample.get(VIEW) for index, sample in enumerate(data_samples) if VIEW in sample}
    if not views:
        return inputs_BCHW
    seen_BCHW = inputs_BCHW.clone()
    for index, view_CHW in views.items():
        height, width = view_CHW.shape[-2:]
        shape = tuple(data_samples[index].img_shape[:2])
        if shape != (height, width):
            raise UserError(
                "The student's image and the teacher's view differ in size.",
                expected=f"{width}×{height}, as packed by PackTwoViews",
                found=f"{shape[1]}×{shape[0]}: model.data_preprocessor.batch_augments resize the student's "
                "image",
                remedy="resize in the pipeline before PackTwoViews, or remove batch_augments",
            )
        alone = student.data_preprocessor({"inputs": [view_CHW], "data_samples": None}, False)["inputs"]
        seen_BCHW[index, :, :height, :width] = alone[0, :, :height, :width]
    return seen_BCHW
