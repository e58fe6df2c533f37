from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .bccd import errors


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        ({"ann_file": "nowhere/val.json"}, "no file nowhere/val.json"),
        (
            {"ann_file": "data/bccd/annotations/train.json"},
            "72 of the 72 images of val_dataloader",
        ),
        ({"type": "CocoMetrik"}, "there is no metric 'CocoMetrik'; did you mean CocoMetric?"),
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
    assert "has no class Platelets; there: RBC, WBC, cat" in found


def test_no_evaluator() -> None:
    assert "and no val_evaluator" in errors(lambda cfg: cfg.pop("val_evaluator"))[0]
