from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict

from mmkd.errors import UserError
from mmkd.teachers import build_teacher

from ..conftest import batch, build, distilled, losses_of, save_teacher, tiny_atss, tiny_teacher

LOGITS: frozenset[Any] = frozenset({"cls_logits"})
FEATS: frozenset[Any] = frozenset({"feats"})
SHAPES = [(96, 128), (96, 128)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher.pth", tiny_teacher())


def make(checkpoint: str | None, needs: frozenset[Any] = LOGITS, **overrides: Any) -> Any:
    entry = {"config": tiny_teacher(**overrides), "checkpoint": checkpoint, "precision": "fp32"}
    return build_teacher(entry, needs, build(tiny_atss()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bbox_head__num_classes": 5}, "different classes"),
        ({"bbox_head__anchor_generator__strides": [4, 8, 16, 32, 64]}, "differ in strides"),
        ({"neck__num_outs": 4, "bbox_head__anchor_generator__strides": [8, 16, 32, 64]}, "differ in levels"),
    ],
)
def test_unfit_teachers(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(None, **overrides)


def test_features_alone_do_not_compare_classes() -> None:
    assert make(None, FEATS, bbox_head__num_classes=5).needs == {"feats"}


def test_levels_of_a_teacher_of_features_alone(checkpoint: str) -> None:
    """They are selected once, in the layout and in the answers, in any order."""
    entry = {"config": tiny_teacher(), "checkpoint": checkpoint, "precision": "fp32"}
    fewer = {
        "neck__num_outs": 3,
        "bbox_head__anchor_generator__strides": [16, 32, 64],
        "neck__start_level": 2,
        "bbox_head__bbox_coder": {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0] * 4,
            "target_stds": [0.1, 0.1, 0.2, 0.2],
        },
    }
    teacher = build_teacher({**entry, "levels": [1, 2, 3]}, FEATS, build(tiny_atss(**fewer)))
    assert teacher.spec.strides == ((16, 16), (32, 32), (64, 64))
    asked = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64), batch((64, 64))["data_samples"]
    chosen, whole = teacher.ask(*asked)(), make(checkpoint, FEATS).ask(*asked)()
    assert chosen.spec == teacher.spec
    for level, wanted in zip(chosen.feats, whole.feats[1:4], strict=True):
        torch.testing.assert_close(level, wanted)
    assert len(whole.feats) == 5
    with pytest.raises(UserError, match="at most 3 entries"):
        build_teacher({**entry, "levels": [1, 2, 3, 4]}, FEATS, build(tiny_atss(**fewer)))


def test_levels_of_averaged_and_of_cached_teachers(tmp_path: Path, checkpoint: str) -> None:
    entry = {
        "config": tiny_teacher(),
        "checkpoint": checkpoint,
        "precision": "fp32",
        "levels": [0, 1, 2],
    }
    loss = {"neck": {"type": "PKDLoss"}}
    data = batch(*SHAPES)
    values = []
    for teacher in (entry, [entry, entry], {**entry, "cache": {"dir": str(tmp_path / "c"), "dtype": "fp32"}}):
        model = build(
            ConfigDict({**distilled(tiny_atss(), tiny_teacher(), distill=loss), "teacher": teacher})
        )
        if hasattr(model.teacher, "for_pipeline"):
            for number, sample in enumerate(data["data_samples"]):
                image = tmp_path / f"{number}.jpg"
                image.touch()
                sample.set_metainfo({"img_path": str(image)})
            model.teacher.for_pipeline("none")
        values.append(losses_of(model, data)["loss_kd_neck"])
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(values[2], values[0])


def test_boxes_have_the_classes_of_the_data_set_whatever_the_losses_read(tmp_path: Path) -> None:
    meta = {"dataset_meta": {"classes": ("a", "b", "c", "d", "e")}}
    five = {"bbox_head__num_classes": 5}
    path = save_teacher(tmp_path / "five.pth", tiny_teacher(**five), **meta)
    teacher = make(path, FEATS, **five)
    asked = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64), batch((64, 64))["data_samples"]
    teacher.find_classes({"classes": ("e", "a", "b")})
    (theirs,), (found,) = teacher.inner.detect(*asked), teacher.detect(*asked)
    names = [meta["dataset_meta"]["classes"][label] for label in theirs.labels]
    assert {"c", "d"} & set(names)
    assert [("e", "a", "b")[label] for label in found.labels] == [x for x in names if x in "eab"]
    teacher.find_classes({"classes": ("x", "a", "b")})
    with pytest.raises(UserError, match=r"lacks some[\s\S]*missing 1: x"):
        teacher.detect(*asked)
