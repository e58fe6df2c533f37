from __future__ import annotations

import pytest
from mmengine.config import Config, ConfigDict

from mmkd.compat import load_config
from mmkd.errors import UserError
from mmkd.project.code import code
from mmkd.project.overrides import class_overrides, merged


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


def test_the_later_override_counts() -> None:
    first, second = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}
    assert merged(first, second) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert first == {"a": {"b": 1, "c": 2}, "d": [1]}
