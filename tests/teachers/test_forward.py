from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import ATSSHead
from mmdet.models.detectors import ATSS

from mmkd.registry import MODELS
from mmkd.teachers import FrozenTeacher, build_detector, forward, teacher_model_and_checkpoint

from ..conftest import build, save_teacher, tiny_atss, tiny_teacher


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher.pth", tiny_teacher())


def make(cfg: Any, checkpoint: str) -> FrozenTeacher:
    entry = {"config": cfg, "checkpoint": checkpoint, "precision": "fp32"}
    return FrozenTeacher(entry, frozenset({"cls_logits"}), build(tiny_atss()))


class SizedATSS(ATSS):
    """On images wider than the example it reads BatchNorm itself."""

    def extract_feat(self, batch_inputs: torch.Tensor) -> Any:
        feats = super().extract_feat(batch_inputs)
        if batch_inputs.shape[-1] <= 128:
            return feats
        return (feats[0] + self.backbone.bn1.weight.mean(), *feats[1:])


class SizedHead(ATSSHead):
    """On large maps its class logits are made of the boxes' tower, too."""

    def forward_single(self, x: torch.Tensor, scale: Any) -> Any:
        logits, boxes, centerness = super().forward_single(x, scale)
        return (logits + boxes.mean() if x.shape[-1] > 16 else logits), boxes, centerness


@pytest.mark.parametrize(
    ("sized", "why"),
    [
        ("SizedATSS", "failed on the first image: AttributeError"),
        ("SizedHead", "output for the first image"),
    ],
)
def test_what_the_example_did_not_show_is_undone(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, sized: str, why: str
) -> None:
    """Folded or pruned by an example of 128 pixels, the teacher is another on images of 160."""
    monkeypatch.setitem(MODELS.module_dict, "SizedATSS", SizedATSS)
    monkeypatch.setitem(MODELS.module_dict, "SizedHead", SizedHead)
    said: list[str] = []
    monkeypatch.setattr(forward, "print_log", lambda text, *_, **__: said.append(text))
    cfg = tiny_teacher(**({"type": sized} if sized == "SizedATSS" else {"bbox_head__type": sized}))
    teacher = make(cfg, checkpoint)
    assert teacher.facts["left_out"]
    assert teacher.facts["batch_norm_folded"]
    inputs = torch.randn(2, 3, 96, 160)
    found = teacher(inputs, [(96, 160)] * 2)
    assert (teacher.facts["left_out"], teacher.facts["batch_norm_folded"]) == ([], False)
    assert sum(why in text for text in said) == 1
    stock, _ = build_detector(*teacher_model_and_checkpoint({"config": cfg, "checkpoint": checkpoint}))
    with torch.no_grad():
        wanted = stock.bbox_head(stock.extract_feat(inputs))[0]
    assert found.cls_logits is not None
    for level, other in zip(found.cls_logits, wanted, strict=True):
        assert torch.equal(level, other)
    assert torch.equal(teacher(inputs, [(96, 160)] * 2).flat_cls_logits(), found.flat_cls_logits())


def test_a_real_image_confirms_what_was_made_cheaper(checkpoint: str) -> None:
    teacher = make(tiny_teacher(), checkpoint)
    assert teacher.forward.unconfirmed
    teacher(torch.randn(1, 3, 96, 160), [(96, 160)])
    assert not teacher.forward.unconfirmed, "its memory is free"
    assert teacher.facts["batch_norm_folded"]
    assert teacher.facts["left_out"]
