from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmkd.doctor import Finding, examine

from . import bccd


def examined(*damages: Any) -> Finding:
    (finding,) = examine(bccd.setup(*damages), ["validation"])[0].findings
    return finding


def test_an_evaluator_takes_a_prediction() -> None:
    finding = examined()
    assert (finding.level, finding.found) == ("ok", "CocoMetric: built, and accepts a prediction")


def test_without_validation() -> None:
    def damage(cfg: Config) -> None:
        cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None

    assert examined(damage).found == "none in the config"


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [({"metric": "bboxes"}, "metric should be one of"), ({"thresholds": 3}, "unexpected keyword")],
)
def test_an_evaluator_that_cannot_be_built(evaluator: dict[str, Any], message: str) -> None:
    finding = examined(lambda cfg: cfg.val_evaluator.update(evaluator))
    assert finding.level == "error"
    assert message in finding.found


def test_a_sample_that_the_evaluator_cannot_take() -> None:
    def damage(cfg: Config) -> None:
        keys = ("ori_shape", "img_shape", "scale_factor")
        cfg.val_dataloader.dataset.pipeline[-1] = {"type": "PackDetInputs", "meta_keys": keys}

    finding = examined(damage)
    assert finding.level == "error"
    assert "img_id" in finding.found


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [({"metric": ["bbox", "segm"]}, "segm is not in results"), ({"iou_thrs": "x"}, "")],
)
def test_an_evaluation_that_fails(evaluator: dict[str, Any], message: str) -> None:
    """At the end of an epoch, and only if anything was found, in training."""
    finding = examined(lambda cfg: cfg.val_evaluator.update(evaluator))
    assert finding.level == "error"
    assert message in finding.found


def test_it_writes_nothing(tmp_path: Path) -> None:
    def damage(cfg: Config) -> None:
        cfg.val_evaluator.outfile_prefix = str(tmp_path / "results")
        cfg.val_evaluator = [
            cfg.val_evaluator,
            {"type": "DumpResults", "out_file_path": str(tmp_path / "a.pkl")},
        ]

    assert examined(damage).level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_metric_of_another_kind() -> None:
    def damage(cfg: Config) -> None:
        cfg.val_evaluator = {"type": "VOCMetric"}

    finding = examined(damage)
    assert finding.found == "VOCMetric: built, and accepts a prediction"
