from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mmdet.models.losses import L1Loss
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh

from mmkd.losses.box_l1 import BoxL1Loss

from .contract import Sample, make_case


class Small(Sample):
    img_shape = (24, 16)


@pytest.mark.parametrize("region", ["all", "teacher"])
def test_value_is_that_of_detrs_own_loss(region: str) -> None:
    student, teacher, context = make_case()
    context = replace(context, data_samples=[Sample(0), Small(1)])
    sizes = torch.tensor([[64.0, 48.0], [16.0, 24.0]])[student.image_N].repeat(1, 2)
    own, taught = (bbox_xyxy_to_cxcywh(outputs.flat_boxes()) / sizes for outputs in (student, teacher))
    weight_N = context.valid_N.double()
    if region == "teacher":
        weight_N = weight_N * teacher.top_scores()
    expected = L1Loss(loss_weight=5.0)(
        own, taught, weight_N[:, None].expand(-1, 4), avg_factor=weight_N.sum()
    )
    value = BoxL1Loss(region=region)(student, teacher, context)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)


def test_the_scale_of_an_image_does_not_count() -> None:
    student, teacher, context = make_case()
    value = BoxL1Loss()(student, teacher, context)

    class Large(Sample):
        img_shape = (480, 640)

    larger = [replace(o, boxes=tuple(level * 10 for level in o.boxes or ())) for o in (student, teacher)]
    context = replace(context, data_samples=[Large(0), Large(1)])
    torch.testing.assert_close(BoxL1Loss()(*larger, context), value)
