"""Every shipped config is built, and every number of a recipe is where users look for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper

from mmkd.compat import load_config
from mmkd.data import PredictionsWriter
from mmkd.heads import is_deformable
from mmkd.registry import MODELS
from mmkd.student_config import student_config

from .conftest import ROOT, batch, build, fill_unset, save_teacher
from .heads.cases import STOCK_CONFIGS
from .zoo import batch as batch_with_masks
from .zoo import small

CONFIGS = sorted((ROOT / "configs").glob("[!_]*/*.py"))
EMBEDDED = ("bccd", "cards")  # small images; those of COCO take most of the time


def predicted(folder: Path, classes: Sequence[str]) -> str:
    """A file with a box for each of two images."""
    with PredictionsWriter(folder / "teacher.json", classes) as writer:
        for index in range(2):
            writer.add(f"{index}.png", (160, 128), [[20, 20, 90, 80]], scores_M=[0.9], labels_M=[index])
    return str(folder / "teacher.json")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=str(path.relative_to(ROOT / "configs")),
            marks=[] if path.parent.name in EMBEDDED else pytest.mark.slow,
        )
        for path in CONFIGS
    ],
)
def test_config_takes_a_training_step(path: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(path)
    if "teacher" in cfg.model:
        assert cfg.model.type in ("KDSingleStageDetector", "KDDetector")
        if "predictions" in cfg.model.teacher:
            cfg.model.teacher.predictions = predicted(tmp_path, cfg.metainfo.classes)
        else:
            assert cfg.model.teacher.checkpoint
            cfg.model.teacher.checkpoint = None
        if "num_queries" in cfg.model:  # of 128 pixels not even 900 queries can be made
            teacher = small(load_config(cfg.model.teacher.config).model)
            cfg.model.teacher.config = {"model": teacher}
            small(cfg.model)
        if cfg.model.get("inherit"):
            config = cfg.model.teacher.config
            teacher = (load_config(config) if isinstance(config, str) else config).model
            teacher.backbone.init_cfg = None
            cfg.model.teacher.checkpoint = save_teacher(tmp_path / "teacher.pth", teacher)
    model = fill_unset(MODELS.build(cfg.model))
    assert not any("teacher" in key for key in model.state_dict())
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 1
    assert cfg.default_hooks.checkpoint.save_best == "coco/bbox_mAP"
    assert ConfigDict(type="MetricsFileHook") in cfg.custom_hooks

    # What the Runner tells, which batch augmentations and heads ask for.
    hub = MessageHub.get_current_instance()
    told = {"iter": 0, "epoch": 0, "max_iters": 10, "max_epochs": 1}
    if "predictions" in cfg.model.get("teacher", {}):
        told["dataset_meta"] = cfg.metainfo.to_dict()
    for name, value in told.items():
        hub.update_info(name, value)
    # Deformable convolutions need positions on the coarsest level, PAA's mixture model many candidates.
    large = is_deformable(model) or cfg.model.get("bbox_head", {}).get("type") == "PAAHead"
    shape = (384, 384) if large else (128, 160)
    model.train()
    settings = {**cfg.optim_wrapper, "type": "OptimWrapper"}  # AMP of float16 needs a GPU
    for of_amp in ("loss_scale", "dtype"):
        settings.pop(of_amp, None)
    with_masks = "'with_mask': True" in str(cfg.train_dataloader)
    data = batch_with_masks(cfg.model, shape[0]) if with_masks else batch(shape, shape)
    for index, sample in enumerate(data["data_samples"]):
        sample.set_metainfo({"img_path": f"{index}.png", "view": []})
    if "UnlabelledImages" in str(cfg.train_dataloader.dataset):
        data["data_samples"][0].set_metainfo({"labelled": False})
    log_vars = model.train_step(data, build_optim_wrapper(model, settings))
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in log_vars.values())
    named = [f"loss_kd_{name}" for name in cfg.model.get("distill", ())]
    assert all(log_vars[name] > 0 for name in named)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_config_can_be_inherited_by_package_name(path: Path, tmp_path: Path) -> None:
    name = path.relative_to(ROOT / "configs")
    child = tmp_path / "child.py"
    child.write_text(f"_base_ = ['mmkd::{name}']\nwork_dir = 'elsewhere'\n")
    cfg = Config.fromfile(child)
    assert cfg.work_dir == "elsewhere"
    alone = student_config(cfg.to_dict(), {}).to_dict()
    assert "mmkd" not in str(alone), "also where mmengine marks what is inherited"
    assert "custom_imports" not in alone
    assert alone["model"]["backbone"]["type"] == Config.fromfile(path).model.backbone.type


def test_inherited_student_builds_in_our_scope(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("_base_ = ['mmkd::bccd/student.py']\n")
    assert sum(p.numel() for p in build(Config.fromfile(child).model).parameters()) > 0


def test_zoo_checkpoints_are_those_of_the_zoo() -> None:
    """By the index that is installed with mmdet."""
    seen = 0
    for path in CONFIGS:
        teacher = Config.fromfile(path).model.get("teacher") or {}
        package, _, name = teacher.get("config", "").partition("::")
        if package != "mmdet":
            continue
        index = yaml.safe_load((STOCK_CONFIGS / name).with_name("metafile.yml").read_text())
        models = index["Models"] if isinstance(index, dict) else index
        weights = {Path(model["Config"]).name: model.get("Weights") for model in models}
        assert teacher.checkpoint == weights[Path(name).name], path
        seen += 1
    assert seen > 30


def test_shipped_teacher_loads() -> None:
    model = MODELS.build(Config.fromfile(ROOT / "configs/bccd/kd.py").model)
    assert model.teacher.class_names == ("Platelets", "RBC", "WBC")
    assert (ROOT / "data/bccd/teacher_atss_r18_narrow.pth").stat().st_size < 8 * 2**20
