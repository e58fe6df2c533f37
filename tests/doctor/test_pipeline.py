from __future__ import annotations

from collections.abc import Callable

import pytest
from mmengine.config import Config

from mmkd.doctor import Finding
from mmkd.doctor.pipeline import examine_pipeline

from . import bccd


def examined(*damages: Callable[[Config], object]) -> list[Finding]:
    return bccd.seen(list(examine_pipeline(bccd.setup(*damages))))


def test_as_it_should_be() -> None:
    assert examined() == []


def test_tested_on_another_scale() -> None:
    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset.pipeline[2].scale = (160, 120)

    (finding,) = examined(damage)
    assert (finding.level, finding.what) == ("warning", "scale")


def test_objects_too_small_for_the_head() -> None:
    (finding,) = examined(bccd.smaller)
    assert (finding.level, finding.what) == ("warning", "objects")
    assert "too small" in finding.found


def test_pixels_far_from_normal() -> None:
    def damage(cfg: Config) -> None:
        cfg.model.data_preprocessor.update(mean=[0, 0, 0], std=[1, 1, 2])

    (finding,) = examined(damage)
    assert (finding.level, finding.what) == ("warning", "pixels")


def test_pixels_that_are_not_finite() -> None:
    def damage(cfg: Config) -> None:
        cfg.model.data_preprocessor.std = [0, 0, 0]

    assert [finding.level for finding in examined(damage)] == ["error"]


@pytest.mark.parametrize(
    ("pixels", "level"), [({}, None), ({"bgr_to_rgb": False}, "warning"), ({"std": [1, 1, 1]}, "warning")]
)
def test_pretrained_weights_know_other_pixels(pixels: dict[str, object], level: str | None) -> None:
    def damage(cfg: Config) -> None:
        cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}
        cfg.model.data_preprocessor.update(pixels)
        cfg.train_dataloader.dataset.ann_file = "nothere.json"  # the config is enough

    assert [one.level for one in examined(damage) if one.what == "pretrained pixels"] == [level] * bool(level)


def test_without_data() -> None:
    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset.ann_file = "nothere.json"

    findings = [one for one in examine_pipeline(bccd.setup(damage)) if one.level == "note"]
    assert findings
    assert all(one.found == "not checked: file not found: data/bccd/nothere.json" for one in findings)
