from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import ConfigDict

from mmkd.errors import UserError
from mmkd.teachers import plain_detector, teacher_model_and_checkpoint

from ..conftest import distilled, tiny_atss, tiny_teacher


def test_path_name_and_dicts_give_the_same_model(tmp_path: Path) -> None:
    from_path = teacher_model_and_checkpoint({"config": "configs/bccd/teacher.py", "checkpoint": "t.pth"})
    assert from_path[0].backbone.base_channels == 32
    assert from_path[1] == "t.pth"
    inline = teacher_model_and_checkpoint({"config": dict(from_path[0]), "checkpoint": "t.pth"})
    whole = teacher_model_and_checkpoint({"config": {"model": from_path[0]}, "checkpoint": "t.pth"})
    assert from_path == inline == whole

    zoo, _ = teacher_model_and_checkpoint(
        {"config": "mmdet::atss/atss_r101_fpn_1x_coco.py", "checkpoint": "t.pth"}
    )
    assert zoo.backbone.depth == 101


def test_inline_model_with_pretrained() -> None:
    teacher = tiny_atss()
    teacher.init_cfg = {"type": "Pretrained", "checkpoint": "t.pth"}
    model, checkpoint = teacher_model_and_checkpoint(teacher)
    assert checkpoint == "t.pth"
    assert "init_cfg" not in model
    assert teacher_model_and_checkpoint({"config": teacher})[1] == "t.pth"
    assert teacher.init_cfg, "the caller's config is left alone"


def test_preprocessor_beside_the_model_counts() -> None:
    model = tiny_atss()
    pixels = model.pop("data_preprocessor")
    config = {"model": model, "data_preprocessor": pixels}
    assert teacher_model_and_checkpoint({"config": config, "checkpoint": None})[0].data_preprocessor == pixels


def test_a_distilled_config_is_its_student() -> None:
    cfg = distilled(tiny_atss(), tiny_teacher())
    plain = plain_detector(cfg)
    assert plain == {**tiny_atss(), "type": "SingleStageDetector"}
    assert cfg.type == "KDSingleStageDetector"
    model, _ = teacher_model_and_checkpoint({"config": cfg, "checkpoint": None})
    assert model == plain
    assert plain_detector(tiny_atss()) == tiny_atss()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"checkpoint": "t.pth"}, "has no config.*\n.*\n.*keys checkpoint"),
        ("teacher.py", "has no config.*\n.*\n.*'teacher.py'"),
        ({"config": "configs/bccd/teacher.py"}, "no checkpoint.*\n.*\n.*\n.*checkpoint=None"),
        (
            {"config": "nowhere.py", "checkpoint": "t.pth"},
            "Cannot read the config of the teacher.*\n.*\n.*nowhere.py",
        ),
        (
            {"config": "mmdet::atss/nowhere.py", "checkpoint": "t.pth"},
            "Cannot read the config of the teacher",
        ),
        ({"config": None, "checkpoint": "t.pth"}, "teacher.config is not a config.*\n.*a path.*\n.*None"),
        ({"config": ["c.py"], "checkpoint": "t.pth"}, "teacher.config is not a config"),
        ({"config": {"a": 1}, "checkpoint": "t.pth"}, "has no model.*\n.*\n.*keys a"),
        (
            {"config": "c.py", "ckpt": "t.pth"},
            r"no option ckpt.*\n.*cache, checkpoint, class_map, compile, config.*precision\n.*ckpt",
        ),
    ],
)
def test_mistakes(teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        teacher_model_and_checkpoint(teacher)


def test_an_inline_config_stays_as_it_is() -> None:
    """Detection transformers write into their config as they are built."""
    config = ConfigDict(type="DINO", bbox_head={"type": "DINOHead"})
    model, _ = teacher_model_and_checkpoint({"config": {"model": config}, "checkpoint": None})
    model.bbox_head.as_two_stage = True
    assert config.bbox_head == {"type": "DINOHead"}
