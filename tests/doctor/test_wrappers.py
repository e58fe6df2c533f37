from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict

from .bccd import Damage, errors

NAMES = ("Platelets", "RBC", "WBC")


def joined(which: str, *metainfo: dict[str, Any], **options: Any) -> Damage:
    """Parts with meta information beside their classes, the second two layers down."""

    def damage(cfg: Config) -> None:
        loader = cfg[f"{which}_dataloader"]
        parts = [ConfigDict({**loader.dataset, "metainfo": {"classes": NAMES, **one}}) for one in metainfo]
        parts[1:] = [{"type": "mmengine.RepeatDataset", "times": 1, "dataset": part} for part in parts[1:]]
        loader.dataset = ConfigDict(type="mmdet.ConcatDataset", datasets=parts, **options)

    return damage


@pytest.mark.parametrize("which", ["train", "val"])
def test_a_key_that_the_first_part_lacks(which: str) -> None:
    """mmdet reads it there, or not, by the order of a set."""
    (found,) = errors(joined(which, {}, {"year": "2012"}))
    assert f"{which}: data set: the first concatenated data set has no metainfo.year" in found
    assert "ignore_keys=['year']" in found
    for keys in ("year", ["year"]):
        assert errors(joined(which, {}, {"year": "2012"}, ignore_keys=keys)) == []


def test_parts_that_differ() -> None:
    differ = ({"year": "2007"}, {"year": "2012"})
    assert errors(joined("train", *differ)) == [], "training takes a list of meta information"
    (found,) = errors(joined("val", *differ))
    assert "val: data set: its data sets differ in metainfo.year" in found
    assert errors(joined("val", *differ, ignore_keys=["year"])) == []


def test_no_parts() -> None:
    def damage(cfg: Config) -> None:
        cfg.train_dataloader.dataset = ConfigDict(type="ConcatDataset", datasets=[])

    assert any("train: data set: ConcatDataset has no datasets" in one for one in errors(damage))


def balanced(wrap: Callable[[Any], Any]) -> Damage:
    def damage(cfg: Config) -> None:
        inner = wrap(cfg.train_dataloader.dataset)
        cfg.train_dataloader.dataset = ConfigDict(
            type="ClassBalancedDataset", oversample_thr=0.1, dataset=inner
        )

    return damage


def test_classes_are_counted_in_a_data_set_alone() -> None:
    assert errors(balanced(lambda dataset: dataset)) == []
    (found,) = errors(balanced(lambda dataset: {"type": "ConcatDataset", "datasets": [dataset, dataset]}))
    assert "ClassBalancedDataset cannot determine the classes of ConcatDataset" in found
    assert "wrap each of its data sets in a" in found
