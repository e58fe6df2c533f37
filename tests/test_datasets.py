from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.datasets import (
    annotation_file,
    below,
    class_names,
    common_metainfo,
    fraction_of_dataset,
    images_below,
    innermost,
    metric_configs,
    places_of,
    where_from,
    without_annotations,
    without_workers,
)
from mmkd.errors import UserError
from mmkd.registry import DATASETS


def test_evenly_spaced_part_of_the_data() -> None:
    cfg = Config.fromfile("configs/bccd/student.py").train_dataloader.dataset
    whole = DATASETS.build(cfg)
    tenth = DATASETS.build({"type": "FractionOfDataset", "dataset": cfg, "fraction": 0.1})
    assert len(tenth) == round(0.1 * len(whole)) == 29
    ids = [tenth.get_data_info(i)["img_id"] for i in range(len(tenth))]
    assert ids[0] == whole.get_data_info(0)["img_id"]
    assert ids[-1] == whole.get_data_info(len(whole) - 1)["img_id"]
    assert tenth.metainfo == whole.metainfo


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.5])
def test_out_of_range(fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        fraction_of_dataset({}, fraction)


def test_places_below_several_layers() -> None:
    def leaf(name: str) -> dict[str, Any]:
        return {"type": "CocoDataset", "ann_file": name}

    joined = {
        "type": "ConcatDataset",
        "datasets": [leaf("a"), {"type": "RepeatDataset", "dataset": leaf("b")}],
    }
    loader = {"dataset": {"type": "MultiImageMixDataset", "dataset": joined}}
    assert [one["ann_file"] for one in innermost(loader["dataset"])] == ["a", "b"]
    for parent, key in places_of(loader):
        parent[key] = leaf("c")
    assert [one["ann_file"] for one in innermost(loader["dataset"])] == ["c", "c"]
    assert list(innermost(None)) == []
    assert below(leaf("a")) == []
    assert [one["type"] for one in below(joined)] == ["CocoDataset", "RepeatDataset"]


def test_where_annotations_are() -> None:
    assert annotation_file({"data_root": "data", "ann_file": "a.json"}) == Path("data/a.json")
    assert annotation_file({"data_root": "data", "ann_file": "/b.json"}) == Path("/b.json")
    assert annotation_file({"data_root": "s3://data", "ann_file": "a.json"}) is None
    assert annotation_file({"ann_file": "a.json", "backend_args": {"backend": "petrel"}}) is None
    assert annotation_file({"ann_file": "a.json", "backend_args": {"backend": "local"}}) == Path("a.json")
    assert annotation_file({}) is None


def test_class_names_of_every_form() -> None:
    assert class_names({"classes": ["a", "b"]}) == class_names({"CLASSES": ("a", "b")}) == ("a", "b")
    assert class_names({"classes": "RBC"}) == ("RBC",)
    assert class_names(None) is class_names({}) is class_names([]) is None
    parts = [{"classes": ("a", "b"), "year": 2007}, {"classes": ["a", "b"], "year": 2012}]
    assert class_names(parts) == ("a", "b")
    assert class_names([*parts, {}]) == class_names([{}, *parts]) == ("a", "b")
    assert class_names([{}, {}]) is None
    assert common_metainfo(parts, ("a", "b")) == {"classes": ("a", "b")}
    assert common_metainfo(None, None) == {}
    with pytest.raises(UserError, match=r"concatenated data sets[\s\S]*a, b[\s\S]*b, a"):
        class_names([*parts, {"classes": ("b", "a")}])


def test_where_data_come_from() -> None:
    assert "clone of mmkd" in where_from(Path("data/bccd/annotations/train.json"))
    assert "cocodataset.org" in where_from(Path("/home/me/data/coco/annotations/x.json"))
    assert where_from(Path("mine/x.json")) == "put it at mine/x.json"


def test_metrics_of_an_evaluator() -> None:
    one, other = {"type": "CocoMetric"}, {"type": "VOCMetric"}
    assert metric_configs(one) == metric_configs([one]) == metric_configs({"metrics": [one]}) == [one]
    assert metric_configs((one, other)) == metric_configs({"type": "Evaluator", "metrics": [one, other]})
    assert metric_configs(None) == metric_configs([]) == []


def test_images_below_wrappers_come_once_with_the_data_set_that_lists_them() -> None:
    cfg = Config.fromfile("configs/bccd/student.py").train_dataloader.dataset
    part = {**cfg, "indices": 2}
    joined = {
        "type": "ConcatDataset",
        "datasets": [part, {"type": "RepeatDataset", "dataset": part, "times": 3}],
    }
    found = list(images_below(DATASETS.build(joined)))
    alone = DATASETS.build(part)
    ids = [alone.get_data_info(number)["img_id"] for number in (0, 1)]
    assert [info["img_id"] for _, info in found] == [*ids, *ids]
    assert {type(base).__name__ for base, _ in found} == {"CocoDataset"}


def test_a_pipeline_for_images_alone() -> None:
    names = ["LoadImageFromFile", "LoadAnnotations", "mmdet.LoadPanopticAnnotations", "Resize"]
    kept = without_annotations([{"type": name} for name in names])
    assert [one["type"] for one in kept] == ["LoadImageFromFile", "Resize"]


def test_loading_without_workers() -> None:
    cfg = Config.fromfile("configs/bccd/student.py").train_dataloader
    cfg.update(num_workers=2, persistent_workers=True, timeout=9, prefetch_factor=4)
    found = without_workers(cfg)
    assert (found["num_workers"], found["persistent_workers"]) == (0, False)
    assert not {"timeout", "prefetch_factor"} & set(found)
    assert found["dataset"] == cfg.dataset
    assert found["dataset"] is not cfg.dataset
    assert cfg.num_workers == 2
