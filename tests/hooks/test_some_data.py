from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from mmkd.errors import UserError
from mmkd.hooks import SomeDataHook
from mmkd.registry import DATASETS

from ..conftest import ROOT
from ..doctor import bccd


def runner(task_loss_weight: float = 1, **options: Any) -> Any:
    cfg = bccd.setup().cfg.train_dataloader.dataset
    cfg.update(options)
    model = nn.Module()
    model.task_loss_weight = task_loss_weight  # type: ignore[assignment]
    return SimpleNamespace(train_dataloader=SimpleNamespace(dataset=DATASETS.build(cfg)), model=model)


def test_data_with_objects() -> None:
    SomeDataHook().before_train(runner(indices=2))
    assert (ROOT / "data/bccd").is_dir()


def test_a_filter_that_leaves_nothing() -> None:
    with pytest.raises(
        UserError, match=r"data set is empty[\s\S]*CocoDataset with 0 images[\s\S]*filter_cfg"
    ):
        SomeDataHook().before_train(runner(filter_cfg={"min_size": 10_000}))


def test_images_without_an_object() -> None:
    without: dict[str, Any] = {"metainfo": {"classes": ("cat",)}, "filter_cfg": None}
    with pytest.raises(UserError, match=r"no object[\s\S]*292 images without boxes[\s\S]*task_loss_weight=0"):
        SomeDataHook().before_train(runner(**without))
    SomeDataHook().before_train(runner(task_loss_weight=0, **without))


def unlabelled(*labelled: Any) -> Any:
    own = {"type": "UnlabelledImages", "images": "data/bccd/images/val"}
    joined = {"type": "ConcatDataset", "datasets": [*labelled, own]}
    return {"dataset": {"type": "RepeatDataset", "times": 2, "dataset": joined}}


def joined_runner(cfg: Any, **model: Any) -> Any:
    built = DATASETS.build(cfg["dataset"])
    return SimpleNamespace(
        train_dataloader=SimpleNamespace(dataset=built), model=SimpleNamespace(task_loss_weight=1, **model)
    )


def test_images_without_labels_are_for_a_student_with_a_teacher() -> None:
    with pytest.raises(UserError, match="would be trained as background"):
        SomeDataHook().before_train(joined_runner(unlabelled()))
    SomeDataHook().before_train(joined_runner(unlabelled(), pseudo_score=0.5))


def test_the_labelled_part_needs_an_object() -> None:
    cfg = bccd.setup().cfg.train_dataloader.dataset
    SomeDataHook().before_train(joined_runner(unlabelled(cfg), pseudo_score=0.5))
    cfg.update(metainfo={"classes": ("cat",)}, filter_cfg=None)
    with pytest.raises(UserError, match=r"no object[\s\S]*with 292 images without boxes"):
        SomeDataHook().before_train(joined_runner(unlabelled(cfg), pseudo_score=0.5))
