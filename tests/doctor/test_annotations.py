from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.doctor.annotations import classes_of

from . import bccd
from .bccd import each, errors


def test_one_class_as_a_string(tmp_path: Path) -> None:
    found = errors(each(lambda dataset: dataset.update(metainfo={"classes": "RBC"})))
    assert [one for one in found if one.startswith("train")] == [
        "train: classes: metainfo.classes is the string 'RBC', so each letter becomes a class; "
        "write a tuple, with its comma: classes=('RBC',)"
    ]
    (found, *_) = errors(each(lambda dataset: dataset.update(metainfo=[{"classes": ("RBC",)}])))
    assert "train: classes: metainfo is a list; write a dict" in found
    names = tmp_path / "classes.txt"
    names.write_text("Platelets\nRBC\nWBC\n")
    assert errors(each(lambda dataset: dataset.update(metainfo={"classes": str(names)}))) == []


@pytest.mark.parametrize(
    ("metainfo", "found"),
    [
        (
            {"classes": "Platelets, RBC, WBC"},
            "the string 'Platelets, RBC, WBC', so each letter becomes a class; "
            "write a tuple, with its comma: classes=('Platelets', 'RBC', 'WBC')",
        ),
        ({"classes": "nowhere/names.txt"}, "so each letter becomes a class; put it at nowhere/names.txt"),
        ({"classes": 3}, "metainfo.classes is 3, not a list of names; write classes=('…', '…')"),
        ({"classes": {"RBC", "WBC"}}, "not a list of names"),
        ({"classes": (("Platelets", "RBC", "WBC"),)}, "not a list of names"),
        ({"classes": ("Platelets", "RBC", "RBC")}, "metainfo.classes lists RBC more than once"),
        (
            {"CLASSES": ("Platelets", "RBC", "WBC")},
            "nothing reads metainfo.CLASSES; rename it to metainfo.classes",
        ),
        (
            {"class": ("Platelets", "RBC", "WBC")},
            "nothing reads metainfo.class; rename it to metainfo.classes",
        ),
        ("RBC", "metainfo is a str; write a dict"),
    ],
)
def test_classes_that_are_no_list_of_names(metainfo: Any, found: str) -> None:
    """One error for each data set, and none of what follows from it."""

    def damage(dataset: Any) -> None:
        dataset.metainfo = metainfo

    told = [one for one in errors(each(damage)) if "not checked" not in one]
    assert [one.split(": ")[0] for one in told] == ["train", "val"]
    assert all(found in one for one in told)


def test_other_keys_of_metainfo_are_the_users() -> None:
    assert errors(each(lambda dataset: dataset.metainfo.update(palette=[(0, 0, 0)] * 3, task_name="x"))) == []
    assert classes_of({"type": "CocoDataset", "metainfo": {"palette": []}})[0] == "person"


def in_the_way_of(kind: str, content: Any, folder: Path) -> list[str]:
    """What is said where a data set of this type has a file of this content."""
    (folder / "file.json").write_text(json.dumps(content))

    def damage(cfg: Config) -> None:
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.update(type=kind, ann_file=str(folder / "file.json"))
        cfg.val_evaluator = [{"type": "VOCMetric"}]
        cfg.default_hooks.checkpoint.pop("save_best", None)

    return [f"{one.level} {one.what}" for one in bccd.examined_preconditions(damage) if one.level != "ok"]


def test_files_that_are_read_in_another_way(tmp_path: Path) -> None:
    """Nothing is said of them; they are listed as not examined."""
    notes = ["note train: annotations", "note val: annotations"]
    panoptic = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "RBC"}],
        "annotations": [{"segments_info": []}],
    }
    assert in_the_way_of("CocoPanopticDataset", panoptic, tmp_path)[:2] == notes
    mmengines = {"metainfo": {"classes": ["RBC"]}, "data_list": [{"img_path": "a.jpg"}]}
    assert in_the_way_of("BaseDetDataset", mmengines, tmp_path) == notes
    coco = in_the_way_of("CocoDataset", panoptic, tmp_path)
    assert "error train: annotations" in coco


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([], "missing keys images, annotations, categories"),
        ({"images": []}, "no list of annotations, categories"),
        ({"images": [1], "annotations": [], "categories": []}, "no list of images"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, content: Any, found: str) -> None:
    (tmp_path / "file.json").write_text(json.dumps(content))
    told = errors(lambda cfg: cfg.train_dataloader.dataset.update(ann_file=str(tmp_path / "file.json")))
    assert [one for one in told if found in one] == told[:1]
