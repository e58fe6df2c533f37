from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import ATSSHead, CenterNetHead, DETRHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from torch import Tensor

from mmkd.errors import UserError
from mmkd.heads import ADAPTERS, DenseHeadAdapter, adapter_for, register_adapter
from mmkd.heads.anchors import stable_logit
from mmkd.registry import MODELS
from mmkd.structures import DenseOutputs, HeadSpec

from ..conftest import build, tiny_atss
from .cases import stock

__all__ = ["stock"]

EVERYTHING: frozenset[Any] = frozenset({"feats", "cls_logits", "bbox_pred", "extra"})


def test_centerness_is_named() -> None:
    head = build(tiny_atss()).bbox_head
    feats = [torch.randn(1, 64, s, s) for s in (16, 8, 4, 2, 1)]
    outputs = adapter_for(head).outputs(head, feats, head(feats), EVERYTHING)
    assert [m.shape[1] for m in outputs.extra["centerness"]] == [1] * 5
    assert adapter_for(head).outputs(head, feats, head(feats), frozenset({"cls_logits"})).bbox_pred is None


def test_wrong_order_is_refused() -> None:
    head = build(tiny_atss()).bbox_head
    flat = torch.randn(6, 3)
    labels = torch.zeros(6).long()
    levels = (flat.T.reshape(1, 3, 6, 1),)
    for cls_logits in (None, levels):
        with pytest.raises(UserError, match="in its own order"):
            adapter_for(head).assigned_labels(head, flat, [(flat.flip(0), labels)], cls_logits)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([], "does not pass a class index"),
        ([(torch.zeros(6, 3), torch.zeros(6, 3))], "does not pass a class index"),
        ([(torch.zeros(4, 3), torch.zeros(4).long())], "every prior"),
        ([(torch.zeros(6, 3), torch.zeros(4).long())], "every prior"),
    ],
)
def test_what_tells_no_labels_is_refused(calls: Any, message: str) -> None:
    head = build(tiny_atss()).bbox_head
    with pytest.raises(UserError, match=message):
        adapter_for(head).assigned_labels(head, torch.zeros(6, 3), calls)


def test_ignored_priors_are_background() -> None:
    head = build(tiny_atss()).bbox_head
    flat = torch.randn(4, 3)
    labels = adapter_for(head).assigned_labels(head, flat, [(flat, torch.tensor([2, -1, 3, 0]))])
    assert labels.tolist() == [2, 3, 3, 0]


def test_nan_is_not_taken_for_another_order() -> None:
    head = build(tiny_atss()).bbox_head
    flat = torch.full((6, 3), float("nan"))
    labels = torch.zeros(6).long()
    assert torch.equal(adapter_for(head).assigned_labels(head, flat, [(flat.clone(), labels)]), labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_logit_is_finite_with_finite_gradient(dtype: torch.dtype) -> None:
    p = torch.tensor([0, 1e-30, 1e-9, 1e-4, 0.5, 0.9, 0.9999999, 1], dtype=dtype, requires_grad=True)
    logits = stable_logit(p)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()
    assert (logits.diff() >= 0).all()
    torch.testing.assert_close(logits[3:6].sigmoid().to(dtype), p[3:6].detach())


def test_logit_inverts_the_sigmoid() -> None:
    x = torch.linspace(-14, 14, 57, dtype=torch.float64)
    torch.testing.assert_close(stable_logit(x.sigmoid()), x)


@pytest.mark.parametrize(
    ("base", "message"),
    [(CenterNetHead, "heat map"), (DETRHead, "set of boxes"), (torch.nn.Linear, "not an mmdet dense head")],
)
def test_heads_without_a_box_per_prior_are_refused(base: type, message: str) -> None:
    class Subclass(base):  # type: ignore[misc,valid-type]
        pass

    with pytest.raises(UserError, match=rf"Subclass cannot be distilled.*{message}[\s\S]*only its neck"):
        adapter_for(Subclass.__new__(Subclass))


def test_wrong_channels_are_refused() -> None:
    head = build(tiny_atss()).bbox_head
    maps = [torch.zeros(1, 5, 1, 1)] * 5
    with pytest.raises(UserError, match=r"class channels per level are \[5"):
        adapter_for(head).outputs(head, maps, (maps, maps, maps), EVERYTHING)


def test_a_head_without_priors_is_refused() -> None:
    head = ATSSHead.__new__(ATSSHead)
    torch.nn.Module.__init__(head)
    with pytest.raises(UserError, match=r"no prior generator[\s\S]*feature losses, which need only its neck"):
        adapter_for(head).spec(head)


class ThirdPartyHead(BaseDenseHead):  # type: ignore[misc]
    """A head as mmdet's documentation has one write it, in no adapter's list."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.in_channels = 3, [4, 6]
        self.prior_generator = AnchorGenerator(strides=[8, 16], ratios=[0.5, 1.0], scales=[4])
        self.bbox_coder = DeltaXYWHBBoxCoder()
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(c, 2 * (3 + 4), 1) for c in self.in_channels)

    def forward(self, feats: Any) -> Any:
        out = [layer(x) for layer, x in zip(self.layers, feats)]
        return [x[:, :6] for x in out], [x[:, 6:] for x in out]

    def loss_by_feat(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def test_a_third_partys_head() -> None:
    head = ThirdPartyHead()
    adapter = adapter_for(head)
    feats = [torch.randn(2, 4, 4, 3), torch.randn(2, 6, 2, 2)]
    outputs = adapter.outputs(head, feats, head(feats), EVERYTHING)
    assert adapter.spec(head) == HeadSpec(3, 3, True, ((8, 8), (16, 16)), (2, 2), (4, 6))
    assert outputs.extra == {}
    assert outputs.flat_cls_logits().shape == (2 * (12 + 4) * 2, 3)

    def decode(anchor: Tensor, delta: Tensor) -> list[float]:
        size = anchor[2:] - anchor[:2]
        center = (anchor[2:] + anchor[:2]) / 2 + delta[:2] * size
        half = size * delta[2:].exp() / 2
        return [*(center - half).tolist(), *(center + half).tolist()]

    anchors = head.prior_generator.grid_priors([(4, 3), (2, 2)], device="cpu")
    expected = [
        decode(anchors[level][(y * W + x) * 2 + a], outputs.bbox_pred[level][image, 4 * a : 4 * a + 4, y, x])
        for level, (H, W) in enumerate([(4, 3), (2, 2)])
        for image in range(2)
        for y in range(H)
        for x in range(W)
        for a in range(2)
    ]
    boxes = DenseOutputs(spec=outputs.spec, feats=(), boxes=adapter.boxes(head, outputs)).flat_boxes()
    torch.testing.assert_close(boxes, torch.tensor(expected))


def test_register_adapter_for_a_head_of_ones_own() -> None:
    class OwnHead(ATSSHead):  # type: ignore[misc]
        pass

    @register_adapter(OwnHead)
    class OwnAdapter(DenseHeadAdapter):
        pass

    try:
        assert isinstance(adapter_for(OwnHead.__new__(OwnHead)), OwnAdapter)
        assert not isinstance(adapter_for(ATSSHead.__new__(ATSSHead)), OwnAdapter)
    finally:
        del ADAPTERS[OwnHead]


def test_mmdet_scope_is_reachable_from_ours() -> None:
    built = MODELS.build({"_scope_": "mmkd", "type": "DistillationLoss"})
    assert type(built).__name__ == "DistillationLoss"
