from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmkd.teachers.pruning import Skipped, skip_unread

from ..conftest import build, tiny_teacher
from ..heads.test_adapter import stock

SIZES = (16, 8, 4, 2, 1)


def feats() -> list[Tensor]:
    return [torch.randn(1, 64, s, s) for s in SIZES]


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("atss/atss_r50_fpn_1x_coco.py", {"reg_convs.0", "atss_reg", "atss_centerness"}),
        ("retinanet/retinanet_r18_fpn_1x_coco.py", {"reg_convs.0", "retina_reg"}),
        ("gfl/gfl_r50_fpn_1x_coco.py", {"reg_convs.0", "gfl_reg"}),
        ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", {"reg_convs.0", "conv_reg"}),
    ],
)
def test_box_branch_is_left_out_and_logits_stay(name: str, left_out: set[str]) -> None:
    head = build(stock(name)).bbox_head.eval()
    x = feats()
    with torch.no_grad():
        before = head(tuple(x))[0]
    skipped = skip_unread(head, x, lambda raw: raw[0])
    assert left_out <= set(skipped)
    assert not any("cls_convs" in layer for layer in skipped)
    ran = []
    for layer in head.reg_convs:
        layer.register_forward_hook(lambda _, __, output: ran.append(output.numel()))
    with torch.no_grad():
        after = head(tuple(x))[0]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert not any(ran), "the box tower computes nothing"
    assert isinstance(head.reg_convs[0], Skipped)


def test_nothing_is_left_out_if_all_is_read() -> None:
    head = build(tiny_teacher()).bbox_head.eval()
    assert skip_unread(head, feats(), lambda raw: [m for part in raw for m in part]) == []


def test_requires_grad_is_as_before() -> None:
    head = build(tiny_teacher()).bbox_head.eval()
    head.requires_grad_(False)
    skip_unread(head, feats(), lambda raw: raw[0])
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("kind", ["shape", "value"])
def test_layers_are_put_back_if_the_head_needs_them(kind: str) -> None:
    class Needy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls, self.box = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: tuple[Tensor, ...]) -> Any:
            box = self.box(x[0]).detach()
            if kind == "shape":
                return [self.cls(x[0] + box)], [box]
            return [self.cls(x[0] * (1 + box.numel()))], [box]

    head = Needy().eval()
    x = [torch.randn(1, 4, 3, 3)]
    with torch.no_grad():
        before = head(tuple(x))[0][0]
    assert skip_unread(head, x, lambda raw: raw[0]) == []
    assert isinstance(head.box, nn.Conv2d)
    with torch.no_grad():
        assert torch.equal(head(tuple(x))[0][0], before)
