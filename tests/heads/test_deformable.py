from __future__ import annotations

import torch
from mmcv.ops import RoIAlign

from mmkd.heads import is_deformable, misreads_channels_last

from ..conftest import build, tiny_atss
from ..outputs.two_stage import FASTER, small
from .cases import stock


def test_deformable_convolutions_are_found() -> None:
    assert is_deformable(build(stock("vfnet/vfnet_r50_fpn_1x_coco.py")))
    assert is_deformable(build(stock("tood/tood_r50_fpn_1x_coco.py")))
    assert not is_deformable(build(tiny_atss()))


def test_layers_that_take_maps_for_contiguous() -> None:
    with_regions = build(small(FASTER))
    assert misreads_channels_last(with_regions)
    assert not misreads_channels_last(with_regions.backbone)
    assert not misreads_channels_last(build(tiny_atss()))
    maps, rois = torch.rand(1, 2, 8, 8), torch.tensor([[0.0, 4, 4, 24, 28]])
    align = RoIAlign(3, 0.25)
    assert not torch.equal(align(maps, rois), align(maps.to(memory_format=torch.channels_last), rois)), (
        "mmcv has mended it: the function can go"
    )
