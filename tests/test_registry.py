from __future__ import annotations

from typing import Any

import pytest
from mmdet.models import ATSS, RetinaNet
from mmdet.models.detectors import SingleStageDetector
from mmengine.hooks import CheckpointHook

from mmkd.registry import HOOKS, MODELS, class_of, is_kind


@pytest.mark.parametrize("kind", ["ATSS", "mmdet.ATSS", ATSS])
def test_all_ways_to_write_a_type_mean_one_class(kind: Any) -> None:
    assert class_of(kind) is class_of({"type": kind}) is ATSS
    assert is_kind({"type": kind}, SingleStageDetector)
    assert is_kind(kind, RetinaNet, ATSS)
    assert not is_kind(kind, RetinaNet)


@pytest.mark.parametrize("kind", ["CheckpointHook", "mmengine.CheckpointHook", CheckpointHook])
def test_classes_of_mmengine(kind: Any) -> None:
    assert class_of(kind, HOOKS) is CheckpointHook


@pytest.mark.parametrize("cfg", [None, {}, {"type": "Unknown"}, {"type": "mmdet.Unknown"}])
def test_what_means_no_class(cfg: Any) -> None:
    assert class_of(cfg, MODELS) is None
    assert not is_kind(cfg, object)
