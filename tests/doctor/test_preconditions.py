"""What training and doctor ask before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict

from mmkd.doctor.preconditions import examine_preconditions, require
from mmkd.errors import UserError

from . import bccd
from .bccd import each, errors


def wrapped(cfg: Config) -> None:
    """Three layers around the data set of training."""
    inner = cfg.train_dataloader.dataset
    joined = {"type": "ConcatDataset", "datasets": [inner, inner]}
    mixed = {"type": "MultiImageMixDataset", "dataset": joined, "pipeline": []}
    cfg.train_dataloader.dataset = ConfigDict(type="RepeatDataset", times=2, dataset=mixed)


def test_nothing_to_say_of_the_shipped_recipe() -> None:
    assert errors() == errors(wrapped) == []
    assert list(require(bccd.setup().cfg, ("train", "val"))) == []
    assert list(require(bccd.setup().cfg, ("test",))) == []


@pytest.mark.parametrize("key", ["area", "bbox", "category_id"])
def test_annotations_without_what_is_read(tmp_path: Path, key: str) -> None:
    def remove(content: dict[str, Any]) -> None:
        for one in content["annotations"][:5]:
            del one[key]

    found = errors(bccd.annotations(tmp_path, remove, "train"))
    assert any(f"train: annotations: 5 of 3941 annotations have no '{key}'" in one for one in found)


def test_no_box_of_the_classes(tmp_path: Path) -> None:
    empty = bccd.annotations(tmp_path, lambda content: content.update(annotations=[]), "train")
    (few, none) = errors(empty)
    assert "no boxes of Platelets, RBC, WBC" in few
    assert "292 images, 292 without boxes (100%) of the config's classes" in none
    assert errors(empty, lambda cfg: cfg.model.update(task_loss_weight=0)) == []


def test_parts_with_other_classes() -> None:
    def damage(cfg: Config) -> None:
        one = cfg.train_dataloader.dataset
        other = ConfigDict({**one, "metainfo": {"classes": ("RBC", "WBC")}})
        cfg.train_dataloader.dataset = ConfigDict(type="ConcatDataset", datasets=[one, other])

    assert any("the concatenated data sets differ" in one for one in errors(damage))


def test_results_for_a_server_need_no_annotations(tmp_path: Path) -> None:
    def damage(cfg: Config) -> None:
        (tmp_path / "image_info.json").write_text(json.dumps({"images": [], "categories": []}))
        cfg.test_dataloader.dataset.ann_file = str(tmp_path / "image_info.json")
        cfg.test_evaluator = {**cfg.val_evaluator, "ann_file": None, "format_only": True}
        cfg.test_evaluator["outfile_prefix"] = str(tmp_path / "results")

    setup = bccd.setup(damage)
    assert [one for one in examine_preconditions(setup, ("test",)) if one.level == "error"] == []


def test_images_that_are_elsewhere_are_not_looked_for(tmp_path: Path) -> None:
    def damage(cfg: Config) -> None:
        for dataset in (cfg.train_dataloader.dataset, cfg.val_dataloader.dataset):
            dataset.data_prefix = {"img": str(tmp_path)}

    assert all("not found in" in one for one in errors(damage))
    assert len(errors(damage)) == 2
    remote = each(lambda dataset: dataset.pipeline[0].update(backend_args={"backend": "petrel"}))
    assert errors(damage, remote) == []


def test_all_errors_are_said_at_once() -> None:
    cfg = bccd.setup(lambda cfg: cfg.model.bbox_head.update(num_classes=2)).cfg
    cfg.val_evaluator.ann_file = "nowhere/val.json"
    with pytest.raises(UserError, match=r"val_evaluator: no file[\s\S]*head: classes[\s\S]*remedy"):
        require(cfg, ("train", "val"))


def test_a_visualizer_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def logs(cfg: Config) -> None:
        cfg.visualizer = {"type": "DetLocalVisualizer", "vis_backends": [{"type": "TensorboardVisBackend"}]}

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (found,) = errors(logs)
    assert "TensorboardVisBackend requires tensorboard or tensorboardX, which is not installed" in found
    assert "pip install tensorboard" in found


@pytest.mark.parametrize(
    ("lacking", "found"),
    [
        (["val_cfg"], "the config has val_dataloader and val_evaluator but no val_cfg; add val_cfg=dict()"),
        (["val_dataloader"], "the config has val_cfg and val_evaluator but no val_dataloader"),
        (
            ["test_cfg", "test_evaluator"],
            "has test_dataloader but no test_cfg and no test_evaluator",
        ),
        (["optim_wrapper"], "the config has train_dataloader and train_cfg but no optim_wrapper"),
    ],
)
def test_what_belongs_together(lacking: list[str], found: str) -> None:
    """mmengine's Runner refuses a part of it, whatever it is used for."""
    (told,) = errors(lambda cfg: cfg.update(dict.fromkeys(lacking)))
    assert found in told
    assert "to None" in told


def test_no_validation_at_all() -> None:
    assert errors(lambda cfg: cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)) == []
