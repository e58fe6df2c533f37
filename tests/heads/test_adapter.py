from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import ATSSHead, TOODHead

from mmkd.compat import load_config
from mmkd.detectors.observe import observe
from mmkd.errors import UserError
from mmkd.heads import ADAPTERS, DenseHeadAdapter, adapter_for, register_adapter
from mmkd.registry import MODELS

from ..conftest import batch, build, tiny_atss

EVERYTHING: frozenset[Any] = frozenset({"feats", "cls_logits", "bbox_pred", "extra"})

# A stock config of each head that the default adapters serve, and whether the
# head tells its classification loss the assigned class of each prior.
HEADS = {
    "atss/atss_r50_fpn_1x_coco.py": True,
    "retinanet/retinanet_r18_fpn_1x_coco.py": True,
    "gfl/gfl_r50_fpn_1x_coco.py": True,
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": True,
    "vfnet/vfnet_r50_fpn_1x_coco.py": False,
    "fsaf/fsaf_r50_fpn_1x_coco.py": True,
    "free_anchor/freeanchor_r50_fpn_1x_coco.py": False,
}


def stock(name: str) -> Any:
    cfg = load_config(f"mmdet::{name}").model
    cfg.backbone.update(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None)
    cfg.backbone.update(style="pytorch", norm_cfg={"type": "BN"})
    cfg.backbone.pop("dcn", None)
    cfg.backbone.pop("stage_with_dcn", None)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=64)
    cfg.bbox_head.update(in_channels=64, feat_channels=64, num_classes=3)
    if "stacked_convs" in cfg.bbox_head:
        cfg.bbox_head.stacked_convs = 1
    return cfg


@pytest.mark.parametrize("name", HEADS)
def test_contract(name: str) -> None:
    """What the adapter says of a head is what the head does in its own loss."""
    model = build(stock(name))
    head, adapter = model.bbox_head, adapter_for(model.bbox_head)
    spec = adapter.spec(head)
    assert spec.num_classes == 3
    assert spec.cls_channels == head.cls_out_channels
    assert len(spec.strides) == len(spec.num_base_priors)

    data = model.data_preprocessor(batch((96, 128), (64, 100)), True)
    with observe(head, labels=True) as seen:
        model.loss(data["inputs"], data["data_samples"])
    outputs = adapter.outputs(head, seen.feats[0], seen.raw[0], EVERYTHING)
    assert outputs.cls_logits is not None
    assert outputs.bbox_pred is not None
    flat = outputs.flat_cls_logits()
    N = sum(2 * f.shape[2] * f.shape[3] * A for f, A in zip(outputs.feats, spec.num_base_priors))
    assert flat.shape == (N, spec.cls_channels)
    assert flat.min() < -1, "logits, not probabilities"

    valid = adapter.valid_priors(head, outputs.cls_logits, [(96, 128), (64, 100)])
    assert valid.shape == (N,)
    first_level = valid[: 2 * 12 * 16 * spec.num_base_priors[0]].reshape(2, 12, 16, -1)
    assert first_level[0].all()
    assert first_level[1, :8, :13].all()
    assert not first_level[1, 8:].any()
    assert not first_level[1, :, 13:].any()

    if HEADS[name]:
        assert seen.loss_cls_args is not None
        labels = adapter.assigned_labels(head, flat, seen.loss_cls_args)
        assert labels.shape == (N,)
        assert ((labels >= 0) & (labels <= 3)).all()
        assert (labels < 3).any()
    else:
        with pytest.raises(UserError, match=r"foreground[\s\S]*region='all'"):
            adapter.assigned_labels(head, flat, seen.loss_cls_args or [])


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
    with pytest.raises(UserError, match="an order of its own"):
        adapter_for(head).assigned_labels(head, flat, [(flat.flip(0), labels)])


def test_nan_is_not_taken_for_another_order() -> None:
    head = build(tiny_atss()).bbox_head
    flat = torch.full((6, 3), float("nan"))
    labels = torch.zeros(6).long()
    assert torch.equal(adapter_for(head).assigned_labels(head, flat, [(flat.clone(), labels)]), labels)


def test_probabilities_and_foreign_heads_are_refused() -> None:
    class Subclass(TOODHead):  # type: ignore[misc]
        pass

    with pytest.raises(UserError, match="probabilities"):
        adapter_for(Subclass.__new__(Subclass))
    with pytest.raises(UserError, match="Linear cannot be distilled: it is not a dense head"):
        adapter_for(torch.nn.Linear(1, 1))


def test_wrong_channels_are_refused() -> None:
    head = build(tiny_atss()).bbox_head
    maps = [torch.zeros(1, 5, 1, 1)] * 5
    with pytest.raises(UserError, match=r"class channels per level are \[5"):
        adapter_for(head).outputs(head, maps, (maps, maps, maps), EVERYTHING)


def test_a_head_without_priors_is_refused() -> None:
    head = ATSSHead.__new__(ATSSHead)
    torch.nn.Module.__init__(head)
    with pytest.raises(UserError, match="no prior generator"):
        adapter_for(head).spec(head)


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
