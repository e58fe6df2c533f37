from __future__ import annotations

import copy
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.errors import UserError
from mmkd.registry import DATASETS
from mmkd.student_config import student_config
from mmkd.visualization import WandbBackend

from .conftest import distilled, tiny_atss, tiny_teacher

TEST_DATA = {
    "batch_size": 1,
    "dataset": {
        "type": "CocoDataset",
        "ann_file": "nowhere.json",
        "metainfo": {"classes": ("a", "b", "c")},
        "pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}],
    },
}


def training(**more: Any) -> dict[str, Any]:
    """The config of a distilled training with something of mmkd's wherever it may be."""
    return {
        "custom_imports": {"imports": ["mmkd"], "allow_failed_imports": False},
        "model": {**distilled(tiny_atss(), tiny_teacher()), "_scope_": "mmkd"},
        "test_dataloader": copy.deepcopy(TEST_DATA),
        "test_evaluator": {"type": "CocoMetric", "_scope_": "mmkd"},
        "test_cfg": {"type": "TestLoop"},
        "default_hooks": {
            "checkpoint": {"type": "DurableCheckpointHook"},
            "timer": {"type": "IterTimerHook"},
        },
        "custom_hooks": [{"type": "DistillStateHook"}, {"type": "mmdet.ProgressHook"}],
        "visualizer": {
            "type": "DetLocalVisualizer",
            "name": "visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "WandbBackend"}],
        },
        "optim_wrapper": {"type": "BFloat16OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}},
        "train_dataloader": {"dataset": {"type": "FractionOfDataset"}},
        **more,
    }


def test_the_config_is_of_stock_types_alone() -> None:
    cfg = training()
    cfg["visualizer"]["vis_backends"] += [{"type": WandbBackend}]
    written = student_config(cfg, {}).pretty_text
    assert "mmkd" not in written
    cfg = Config.fromstring(written, ".py")
    assert cfg.model.pop("type") == "SingleStageDetector"
    assert cfg.model == {key: value for key, value in tiny_atss().items() if key != "type"}
    assert cfg.test_dataloader == TEST_DATA
    assert cfg.default_hooks == {"timer": {"type": "IterTimerHook"}}
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ["LocalVisBackend"]
    assert set(cfg) & {"custom_imports", "custom_hooks", "optim_wrapper", "train_dataloader"} == set()


def test_a_student_that_was_not_distilled_stays_what_it_is() -> None:
    pretrained = {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}
    cfg = training(model=tiny_atss(backbone__init_cfg=pretrained))
    pixels = cfg["model"].pop("data_preprocessor")
    cfg["model"].bbox_head.type = "mmkd.ATSSHead"  # our scope, of which stock MMDetection knows nothing
    model = student_config({**cfg, "data_preprocessor": pixels}, {}).model
    assert model.bbox_head.type == "ATSSHead"
    assert model.type == tiny_atss().type
    assert model.data_preprocessor == pixels
    assert "init_cfg" not in model.backbone


def test_modules_of_the_user() -> None:
    """Imported if types of theirs are left, and not for what is of training alone."""
    imports = {"imports": ["mmkd", "mine.models"], "allow_failed_imports": False}
    own = student_config(training(custom_imports=imports), {})
    assert "custom_imports" not in own
    mine = training(custom_imports=imports, tta_model={"type": "MyTTAModel"})
    assert student_config(mine, {}).custom_imports.imports == ["mine.models"]
    assert "custom_imports" not in student_config(training(custom_imports={"imports": "mmkd"}), {})
    with pytest.raises(UserError, match=r"more than stock(.|\n)*mine\.MyTTAModel"):
        student_config(training(tta_model={"type": "mine.MyTTAModel"}), {})
    with pytest.raises(UserError, match=r"more than stock(.|\n)*ProgressHook"):
        student_config(
            training(tta_model={"type": "mmkd.hooks.ProgressHook", "deep": 1}, model=tiny_atss()), {}
        )


def test_its_data_set_is_built_without_files() -> None:
    parts = [{**TEST_DATA["dataset"], "metainfo": {"classes": "classes.txt"}} for _ in range(2)]
    joined = {"dataset": {"type": "ConcatDataset", "datasets": parts}}
    cfg = student_config(training(test_dataloader=joined), {"classes": ("a", "b", "c")})
    built = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True})
    assert built.metainfo["classes"] == ("a", "b", "c")
