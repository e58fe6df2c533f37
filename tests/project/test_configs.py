from __future__ import annotations

import pytest
from mmengine.config import Config, ConfigDict

from mmkd.compat import load_config
from mmkd.errors import UserError
from mmkd.project.configs import Code, class_overrides, code, learning_rate


def test_code_is_read_as_what_it_was() -> None:
    value = {"a": [1, 2.5], "b": {"c": ("x",), "d": None, "e": True}, "f": "it's"}
    long = {"first": "a" * 50, "second": {"third": "b" * 50, "fourth": ["c" * 40, "d" * 40]}}
    cfg = Config.fromstring(
        f"short = {code(value)}\nlong = {code(long)}\nname = {code(Code('short'))}", ".py"
    )
    assert cfg.short == value
    assert cfg.long == long
    assert cfg.name == value
    assert code({"a": 1}) == "dict(a=1)"


def test_the_learning_rate_follows_the_batch() -> None:
    assert learning_rate(None, 8).value == 0.001
    assert learning_rate(None, 2).value == 0.0005
    sgd = {
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01}},
        "auto_scale_lr": {"base_batch_size": 16},
    }
    assert learning_rate(sgd, 4).value == 0.0025
    adam = {
        "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.004}},
        "auto_scale_lr": {"base_batch_size": 256},
    }
    assert learning_rate(adam, 16).value == 0.001
    assert "0.004 is for batch size 256" in learning_rate(adam, 16).why


@pytest.mark.parametrize(
    "name",
    [
        "mmdet::atss/atss_r50_fpn_1x_coco.py",
        "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
        "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
    ],
)
def test_every_head_gets_the_number_of_classes(name: str) -> None:
    overrides = class_overrides(load_config(name).model, 3)
    cfg = Config.fromstring(f"_base_ = ['{name}']\nmodel = {code(overrides)}", ".py")
    text = str(cfg.model)
    assert "'num_classes': 80" not in text
    assert text.count("'num_classes': 3") == (3 if "cascade" in name else 1)


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match="Cannot set this model's number of classes"):
        class_overrides(ConfigDict(type="RPN", rpn_head={"num_classes": 1}), 3)
