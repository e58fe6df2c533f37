from __future__ import annotations

import pytest

from mmkd.heads.observe import observe

from ..conftest import batch, build, losses_of, tiny_atss


def test_records_one_loss_and_leaves_no_hook() -> None:
    model = build(tiny_atss())
    with observe(model.bbox_head, labels=("loss_cls",)) as seen:
        losses_of(model, batch())
    assert len(seen.feats) == len(seen.raw) == 1
    assert len(seen.raw[0][0]) == 5
    assert seen.loss_cls_args is not None
    assert len(seen.loss_cls_args) == 5
    assert not model.bbox_head._forward_hooks
    assert not model.bbox_head.loss_cls._forward_pre_hooks


def test_hooks_go_after_an_error_too() -> None:
    model = build(tiny_atss())
    with pytest.raises(RuntimeError, match="boom"), observe(model.bbox_head, labels=("loss_cls",)):
        raise RuntimeError("boom")
    assert not model.bbox_head._forward_hooks


def test_labels_are_not_recorded_unless_asked_for() -> None:
    model = build(tiny_atss())
    with observe(model.bbox_head, labels=()) as seen:
        losses_of(model, batch())
    assert seen.loss_cls_args is None
