from __future__ import annotations

from typing import Any

import pytest
import torch
from mmcv.ops import nms
from mmdet.models import ATSS, RetinaNet
from mmdet.models.detectors import SingleStageDetector
from mmengine.hooks import CheckpointHook
from mmengine.utils import deprecated_api_warning

from mmkd.registry import HOOKS, MODELS, accepted_arguments, class_of, is_kind, name_of


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


class Base:
    def __init__(self, a: int, b: int = 1, **others: Any) -> None: ...


class Passes(Base):
    def __init__(self, *args: Any, b: int = 2, **kwargs: Any) -> None: ...


class Closed(Passes):
    def __init__(self, c: int = 3) -> None: ...


class Renamed(Closed):
    @deprecated_api_warning({"d": "c"})
    def __init__(self, c: int = 4) -> None: ...


def function(a: int, *, b: int = 5, **others: Any) -> None: ...


@pytest.mark.parametrize(
    ("kind", "arguments", "others"),
    [
        (Base, {"a": None, "b": 1}, True),
        (Passes, {"a": None, "b": 2}, True),
        (Closed, {"c": 3}, False),
        (Renamed, {"c": 4}, True),
        (function, {"a": None, "b": 5}, True),
        (None, {}, False),
    ],
)
def test_accepted_arguments(kind: Any, arguments: dict[str, Any], others: bool) -> None:
    found, takes_others = accepted_arguments(kind)
    defaults = {name: None if one.default is one.empty else one.default for name, one in found.items()}
    assert (defaults, takes_others) == (arguments, others)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ATSS, "ATSS"),
        ("mmdet.models.losses.iou_loss.GIoULoss", "GIoULoss"),
        ("mmkd.ATSS", "ATSS"),
        ("mine.ATSS", "mine.ATSS"),
        ("mine.models.ATSS", "mine.models.ATSS"),
        (nms, "nms"),
        (torch.optim.SGD, "SGD"),
        (torch.nn.Bilinear, "torch.nn.modules.linear.Bilinear"),
        (None, None),
    ],
)
def test_the_name_by_which_mmdet_finds_it(kind: Any, name: Any) -> None:
    assert name_of(kind) == name
