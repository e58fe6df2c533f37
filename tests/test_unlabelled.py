"""Trainings in which some of the images have no labels."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import init_default_scope

from mmkd.hooks import (
    DistillStateHook,
    ReproducibleHook,
    ResumeHook,
    StopHook,
    TeacherCacheHook,
    TrainingStopped,
)

from .conftest import build, distilled, save_teacher, tiny_atss, tiny_teacher
from .hooks.kd_runner import kd_runner, logged
from .hooks.toy import Call

TERMS = {
    "cls": {"type": "DistillationLoss", "region": "teacher"},
    "box": {"type": "BoxIoULoss"},
    "neck": {"type": "FitNetsLoss", "align": "conv"},
}
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "Resize", "scale": (64, 64), "keep_ratio": True},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
    {"type": "PackDetInputs"},
]
CELLS = {"classes": ("Platelets", "RBC", "WBC")}


def loader(labelled: int = 6, unlabelled: int = 10, **options: Any) -> dict[str, Any]:
    """Two images with labels and two without in each batch; three batches an epoch."""
    own = {
        "type": "CocoDataset",
        "data_root": "data/bccd/",
        "ann_file": "annotations/val.json",
        "data_prefix": {"img": "images/val/"},
        "metainfo": CELLS,
        "indices": labelled,
        "pipeline": PIPELINE,
    }
    others = {
        "type": "UnlabelledImages",
        "data_root": "data/bccd/",
        "images": "images/train/",
        "indices": unlabelled,
        "pipeline": PIPELINE,
    }
    return {
        "batch_size": 4,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "batch_sampler": {"type": "MixedBatchSampler", "source_ratio": [1, 1]},
        "dataset": {"type": "ConcatDataset", "datasets": [own, others]},
        "num_workers": 1,
        "persistent_workers": True,
        **options,
    }


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    init_default_scope("mmdet")
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", tiny_teacher())


def model_of(checkpoint: str, *, with_cp: bool = False, **options: Any) -> Any:
    cfg = distilled(tiny_atss(backbone__with_cp=with_cp), tiny_teacher(), checkpoint, distill=TERMS)
    cfg.update(options)
    return build(cfg)


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {
        "optim_wrapper": {
            "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9},
            "accumulative_counts": 2,
        }
    },
    "iterations": {"train_cfg": {"by_epoch": False, "max_iters": 6}},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_training_goes_on_with_the_same_numbers(mode: str, teacher: str, tmp_path: Path) -> None:
    """In the middle of an epoch, with a moving average, checkpointed layers, and layers of a loss's own."""

    def runner(name: str, *hooks: Any, **options: Any) -> Any:
        ema = {"type": "EMAHook", "momentum": 0.1}
        own = (*hooks, ReproducibleHook(), StopHook(), DistillStateHook(), ema)
        data = loader()
        if mode == "iterations":
            data["sampler"]["type"] = "InfiniteSampler"
        model = model_of(teacher, with_cp=True)
        return kd_runner(tmp_path / name, model, *own, train_dataloader=data, **MODES[mode], **options)

    whole = runner("whole")
    whole.train()
    seen = logged(tmp_path / "whole")
    assert len(seen) == 6
    assert all(one["loss_cls"] > 0 and one["loss_kd_cls"] > 0 and one["loss_kd_neck"] > 0 for one in seen)

    stop = Call("after_train_iter", 2, lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(TrainingStopped):
        runner("parts", stop).train()
    resumed = runner("parts", ResumeHook(), resume=True)
    resumed.train()
    again = logged(tmp_path / "parts")
    names = [name for name in seen[0] if "loss" in name]
    assert [[one[name] for name in names] for one in again] == [[one[name] for name in names] for one in seen]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.slow
def test_the_cache_has_views_of_the_teacher_and_its_boxes(teacher: str, tmp_path: Path) -> None:
    """The student's colours change from epoch to epoch; the teacher is asked once for each image and flip."""
    views = {"type": "PackTwoViews", "strong": [PIPELINE[4]]}
    data = loader(labelled=4, unlabelled=4)
    for part in data["dataset"]["datasets"]:
        part["pipeline"] = [*PIPELINE[:3], views]
    terms = {"cls": {"type": "DistillationLoss"}, "neck": {"type": "FGDLoss", "loss_weight": 1.0}}

    def run(name: str, **entry: Any) -> Any:
        entry = {"config": tiny_teacher(), "checkpoint": teacher, "precision": "fp32", **entry}
        model = model_of(teacher, distill=terms, teacher=entry, pseudo_score=0.05)
        kd_runner(
            tmp_path / name, model, ReproducibleHook(), TeacherCacheHook(), train_dataloader=data
        ).train()
        return model

    run("live")
    cached = run("cached", cache={"dir": str(tmp_path / "cache"), "dtype": "fp32"}).teacher
    assert (cached.computed, cached.read) == (8, 8)
    assert cached.summary().count("boxes: 4 of 8 read") == 1
    live, stored = (logged(tmp_path / name) for name in ("live", "cached"))
    assert len(live) == len(stored) == 4
    for one, other in zip(live, stored):
        for key in ("loss_cls", "loss_kd_cls", "loss_kd_neck"):
            assert other[key] == pytest.approx(one[key], rel=1e-3), key
