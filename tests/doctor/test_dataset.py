from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.doctor import Finding
from mmkd.doctor.dataset import examine_dataset

from . import bccd


def examined(*damages: Callable[[Config], object]) -> list[Finding]:
    return bccd.seen(list(examine_dataset(bccd.setup(*damages))))


def test_nothing_to_say_of_the_shipped_data() -> None:
    assert examined() == []
    found = {finding.what: finding.found for finding in examine_dataset(bccd.setup())}
    assert found["train: classes"] == "boxes: Platelets 292, RBC 3348, WBC 301"
    assert found["val: boxes"].startswith("945: ")


def classes(*names: str) -> Callable[[Config], None]:
    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset.metainfo.classes = names
        cfg.val_dataloader.dataset.metainfo.classes = names

    return damage


def test_classes_written_otherwise() -> None:
    train, _ = examined(classes("platelets", "RBC", "WBC"))
    assert train.level == "error"
    assert "not in the file: platelets" in train.found
    assert "platelets is Platelets" in train.found


def test_no_class_matches() -> None:
    *files, head = examined(classes("cat", "dog"))
    assert [one.what for one in files] == ["train: classes", "val: classes"]
    assert all("none of the config's classes match" in one.found for one in files)
    assert head.found == "model.bbox_head.num_classes is 3; the data set has 2: cat, dog"


def test_classes_in_another_order_than_in_the_file() -> None:
    """mmdet numbers them by the file, whatever the config says."""
    train, _ = examined(classes("RBC", "Platelets", "WBC"))
    assert train.level == "error"
    assert "Platelets is labelled RBC, RBC is labelled Platelets" in train.found
    assert train.remedy == "metainfo=dict(classes=('Platelets', 'RBC', 'WBC'))"


def test_train_and_val_name_classes_differently() -> None:
    def damage(cfg: Config) -> None:
        cfg.val_dataloader.dataset.metainfo = {"classes": ("Platelets", "RBC")}

    (finding,) = examined(damage)
    assert (finding.level, finding.what) == ("error", "train and val: classes")


def test_a_class_without_a_box(tmp_path: Path) -> None:
    def damage(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 1]

    (finding,) = examined(bccd.annotations(tmp_path, damage, "train"))
    assert (finding.level, finding.found) == ("warning", "no boxes of Platelets")


def test_most_images_are_empty(tmp_path: Path) -> None:
    def damage(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] <= 20]

    (finding,) = examined(bccd.annotations(tmp_path, damage, "val"))
    assert (finding.level, finding.what) == ("warning", "val: images")


def test_files_that_are_not_there() -> None:
    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset.ann_file = "nothere.json"
        cfg.val_dataloader.dataset.data_prefix = {"img": "images/nowhere/"}

    train, val = examined(damage)
    assert train.found == "no file data/bccd/nothere.json"
    assert val.found == "no folder data/bccd/images/nowhere"


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}'])
def test_a_file_that_is_no_coco_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)

    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset.ann_file = str(tmp_path / "broken.json")

    (finding,) = examined(damage)
    assert finding.level == "error"
    assert "cannot read" in finding.found


def test_other_annotations_than_coco(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")

    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset.ann_file = str(tmp_path / "train.txt")

    (finding,) = [one for one in examine_dataset(bccd.setup(damage)) if one.level == "note"]
    assert finding.found[:11] == "not checked"


def test_wrappers_are_looked_into() -> None:
    def wrap(cfg: Config) -> None:
        inner = cfg.train_dataloader.dataset
        joined = {"type": "ConcatDataset", "datasets": [inner, inner]}
        cfg.train_dataloader.dataset = {"type": "RepeatDataset", "times": 2, "dataset": joined}

    assert examined(wrap) == []


def test_val_is_part_of_train(tmp_path: Path) -> None:
    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset.ann_file = "annotations/val.json"
        cfg.train_dataloader.dataset.data_prefix = {"img": "images/val/"}

    (finding,) = examined(damage)
    assert (finding.level, finding.what) == ("warning", "train and val")
    assert "72 validation images are in the training set" in finding.found
    assert "all of them" in finding.found


def test_every_finding_goes_into_json() -> None:
    assert json.loads(json.dumps([vars(finding) for finding in examine_dataset(bccd.setup())]))


def test_other_data_sets_number_their_classes_themselves() -> None:
    def damage(cfg: Config) -> None:
        classes("RBC", "Platelets", "WBC")(cfg)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.type = "Objects365V1Dataset"

    assert examined(damage) == []
