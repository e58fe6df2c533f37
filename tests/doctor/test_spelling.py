from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config

from mmkd.doctor.spelling import examine_spelling

from ..conftest import ROOT
from ..heads.cases import STOCK_CONFIGS
from . import bccd


def found(**options: Any) -> list[tuple[str, str, str]]:
    cfg = bccd.setup().cfg
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in options.items()})
    return [(one.level, one.found, one.remedy) for one in examine_spelling(cfg)]


@pytest.mark.parametrize(
    ("key", "level", "remedy"),
    [
        ("optim_wraper", "warning", "did you mean optim_wrapper?"),
        ("train_dataloder", "warning", "did you mean train_dataloader?"),
        ("custom_hook", "warning", "did you mean custom_hooks?"),
        ("train_cfg__max_epoch", "error", "did you mean train_cfg.max_epochs?"),
        ("optim_wrapper__optimizer__lrr", "error", "did you mean optim_wrapper.optimizer.lr?"),
        ("model__distill__cls__tempurature", "warning", "did you mean model.distill.cls.temperature?"),
        ("model__neck__out_chanels", "warning", "did you mean model.neck.out_channels?"),
        ("train_dataloader__dataset__pipelines", "error", "did you mean train_dataloader.dataset.pipeline?"),
    ],
)
def test_did_you_mean(key: str, level: str, remedy: str) -> None:
    assert [(one[0], one[2]) for one in found(**{key: 1})] == [(level, remedy)]


def test_variables_of_a_config_are_left_alone() -> None:
    assert found(quick={"batch_size": 4}, test_pipeline_stage2=[], img_scale=(320, 240)) == []


def test_variables_that_are_named_like_settings() -> None:
    assert found(batch_size=1) == [
        (
            "warning",
            "nothing reads batch_size=1; train_dataloader.batch_size is 4",
            "did you mean train_dataloader.batch_size?",
        )
    ]
    assert found(max_epochs=5, batch_size=4) == [], "what is trained with, and what bases have"


@pytest.mark.parametrize("name", ["max_epochs", "max_iters"])
def test_a_training_of_nothing(name: str) -> None:
    options = {"train_cfg": {"_delete_": True, "by_epoch": name == "max_epochs", name: 0}}
    assert ("error", f"{name}=0 trains nothing", f"set train_cfg.{name} to 1 or more") in found(**options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_epochs", 5.0, "max_epochs=5.0 is not a whole number"),
        ("max_epochs", "5", "max_epochs='5' is not a whole number"),
        ("val_interval", "1", "val_interval='1' is not a number"),
        ("val_interval", 0, "val_interval=0 is not a valid interval"),
    ],
)
def test_numbers_of_the_loop(name: str, value: Any, message: str) -> None:
    told = found(**{f"train_cfg__{name}": value})
    assert told == [("error", message, f"set train_cfg.{name} to 1 or more")]


SHIPPED = [*sorted((ROOT / "configs").glob("[!_]*/*.py"))]
STOCK = [
    "detr/detr_r50_8xb2-150e_coco.py",
    "rtmdet/rtmdet_s_8xb32-300e_coco.py",
    "yolox/yolox_s_8xb8-300e_coco.py",
]


CONFIGS = [*SHIPPED, *(STOCK_CONFIGS / name for name in STOCK)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_nothing_to_say_of_configs_that_train(path: Any) -> None:
    assert list(examine_spelling(Config.fromfile(path))) == []
