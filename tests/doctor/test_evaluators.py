from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from .bccd import errors, examined_preconditions


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        ({"ann_file": "nowhere/val.json"}, "no file nowhere/val.json"),
        (
            {"ann_file": "data/bccd/annotations/train.json"},
            "72 of the 72 images of val_dataloader",
        ),
        ({"metric": "bboxes"}, "CocoMetric has no metric 'bboxes'; did you mean bbox?"),
        ({"metric": ["bbox", "mask"]}, "CocoMetric has no metric 'mask'; valid: bbox, segm,"),
        ({"metric_items": ["mAP", "AP75"]}, "metric_items has 'AP75'; use a list of: mAP, mAP_50"),
        ({"metric_items": "mAP"}, "metric_items has 'mAP'; use a list of"),
        ({"format_only": True}, "format_only needs an outfile_prefix to write results to"),
        ({"ann_file": None}, "CocoMetric has no ann_file, and the samples contain no ground truth"),
        ({"type": "CocoMetrik"}, "unknown metric 'CocoMetrik'; did you mean CocoMetric?"),
    ],
)
def test_evaluators(evaluator: dict[str, Any], message: str) -> None:
    (found,) = errors(lambda cfg: cfg.val_evaluator.update(evaluator))
    assert message in found
    (found,) = errors(lambda cfg: cfg.update(val_evaluator=[{**cfg.val_evaluator, **evaluator}]))
    assert message in found


def test_an_evaluator_of_other_classes(tmp_path: Path) -> None:
    content = json.loads(Path("data/bccd/annotations/val.json").read_text())
    content["categories"][0]["name"] = "cat"
    (tmp_path / "other.json").write_text(json.dumps(content))
    (found,) = errors(lambda cfg: cfg.val_evaluator.update(ann_file=str(tmp_path / "other.json")))
    assert "has no class Platelets; it has: RBC, WBC, cat" in found


def test_no_evaluator() -> None:
    assert "but no val_evaluator" in errors(lambda cfg: cfg.pop("val_evaluator"))[0]


@pytest.mark.parametrize(("content", "found"), [("{", ": Expecting"), ("[]", ": missing keys images")])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "val.json").write_text(content)
    (told,) = errors(lambda cfg: cfg.val_evaluator.update(ann_file=str(tmp_path / "val.json")))
    assert found in told


@pytest.mark.parametrize(
    ("evaluator", "found"),
    [
        (
            "CocoMetric",
            "'CocoMetric' is not a metric; write val_evaluator=dict(type='CocoMetric'",
        ),
        ([None], "val_evaluator: None is not a metric"),
        ({"ann_file": "x.json"}, "val_evaluator: a metric has no type; valid: COCOCaptionMetric"),
    ],
)
def test_what_is_no_metric(evaluator: Any, found: str) -> None:
    def damage(cfg: Config) -> None:
        cfg.val_evaluator = evaluator
        cfg.default_hooks.checkpoint.save_best = None

    (told,) = errors(damage)
    assert found in told


def test_metrics_below_an_evaluator() -> None:
    """Another form that mmengine reads."""

    def below(**options: Any) -> list[str]:
        return errors(lambda cfg: cfg.update(val_evaluator={"metrics": [{**cfg.val_evaluator, **options}]}))

    assert below() == []
    assert "no file nowhere.json" in below(ann_file="nowhere.json")[0]


def test_ground_truth_in_the_samples() -> None:
    def damage(cfg: Config) -> None:
        cfg.val_evaluator.ann_file = None
        keys = ("img_id", "ori_shape", "img_shape", "scale_factor", "instances")
        cfg.val_dataloader.dataset.pipeline[-1] = {"type": "PackDetInputs", "meta_keys": keys}

    assert errors(damage) == []


@pytest.mark.parametrize("key", ["coco/bbox_mAP", "coco/bbox_mAP_50", "auto", None, ["coco/bbox_mAP"]])
def test_figures_that_hooks_may_follow(key: Any) -> None:
    assert errors(lambda cfg: cfg.default_hooks.checkpoint.update(save_best=key)) == []


@pytest.mark.parametrize(
    ("key", "options", "remedy"),
    [
        ("coco/mAP", {}, "did you mean coco/bbox_mAP?"),
        ("bbox_mAP", {}, "did you mean coco/bbox_mAP?"),
        ("coco/bbox_mAP_75", {"metric_items": ["mAP"]}, "did you mean coco/bbox_mAP?"),
        ("coco/segm_mAP", {}, "did you mean coco/bbox_mAP?"),
        ("coco/bbox_mAP", {"prefix": "own"}, "did you mean own/bbox_mAP?"),
        ("coco/bbox_mAP", {"metric": "proposal"}, "valid: coco/AR@100"),
    ],
)
def test_a_figure_that_is_not_given(key: str, options: dict[str, Any], remedy: str) -> None:
    def damage(cfg: Config) -> None:
        cfg.val_evaluator.update(options)
        cfg.default_hooks.checkpoint.save_best = ["auto", key]

    (told,) = errors(damage)
    assert told.startswith(f"save_best: val_evaluator does not report {key}; ")
    assert remedy in told


def test_figures_of_other_metrics_are_known_by_their_prefix() -> None:
    def damage(cfg: Config) -> None:
        cfg.val_evaluator = {"type": "VOCMetric"}
        cfg.default_hooks.checkpoint.save_best = "pascal_voc/mAP"

    assert errors(damage) == []
    told = errors(damage, lambda cfg: cfg.default_hooks.checkpoint.update(save_best="coco/bbox_mAP"))
    assert [one.partition(";")[0] for one in told] == [
        "save_best: val_evaluator does not report coco/bbox_mAP"
    ]


@pytest.mark.parametrize(("strict", "level"), [(False, "warning"), (True, "error")])
def test_a_figure_to_stop_by(strict: bool, level: str) -> None:
    hook = {"type": "EarlyStoppingHook", "monitor": "coco/mAP", "strict": strict}
    (found,) = [
        one
        for one in examined_preconditions(lambda cfg: cfg.update(custom_hooks=[hook]))
        if one.level != "ok"
    ]
    assert (found.level, found.what) == (level, "EarlyStoppingHook")
