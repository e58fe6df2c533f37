from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.models.necks.ssd_neck import L2Norm

from mmkd.teachers.building import build_detector, class_names_of

from ..conftest import tiny_atss


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"dataset_meta": {"classes": ["a", "b"]}}, ("a", "b")),
        ({"dataset_meta": {"CLASSES": ("a",)}}, ("a",)),
        ({"CLASSES": ("a", "b")}, ("a", "b")),
        ({}, None),
        ({"dataset_meta": None}, None),
    ],
)
def test_class_names_of_either_era(meta: dict[str, Any], names: tuple[str, ...] | None) -> None:
    assert class_names_of(meta) == names


def test_a_random_teacher_has_no_weights_as_the_memory_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet sets some by `init_weights` alone, and a teacher is never initialised."""

    def unset(self: Any, channels: int, scale: float) -> None:
        torch.nn.Module.__init__(self)
        self.scale, self.weight = scale, torch.nn.Parameter(torch.full((channels,), torch.nan))

    monkeypatch.setattr(L2Norm, "__init__", unset)
    cfg = tiny_atss(backbone__out_indices=[0, 1])
    cfg.neck = {"type": "SSDNeck", "in_channels": [8, 16], "out_channels": [8, 16, 32]}
    cfg.neck.update(level_strides=[2], level_paddings=[1])
    model, _ = build_detector(cfg, None)
    assert torch.isfinite(model.neck.l2_norm.weight).all()
