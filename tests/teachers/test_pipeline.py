from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose

from mmkd.errors import UserError
from mmkd.registry import DATASETS
from mmkd.teachers.pipeline import base_datasets, recipe_of, variants

LOAD: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}]
RESIZE = {"type": "Resize", "scale": (160, 120), "keep_ratio": True}
FLIP = {"type": "RandomFlip", "prob": 0.5}
PACK = {"type": "PackDetInputs"}


def dataset(*transforms: dict[str, Any], wrapper: str | None = None, **options: Any) -> Any:
    cfg = Config.fromfile("configs/bccd/student.py").train_dataloader.dataset
    cfg.pipeline = [*LOAD, *transforms]
    cfg.indices = 4
    if wrapper == "ConcatDataset":
        return DATASETS.build({"type": wrapper, "datasets": [cfg, {**cfg, **options}]})
    return DATASETS.build({"type": wrapper, "dataset": cfg, **options} if wrapper else cfg)


@pytest.mark.slow
def test_the_recipe_is_what_the_metadata_do_not_tell() -> None:
    recipe = recipe_of(dataset(RESIZE, FLIP, PACK))
    assert "LoadImageFromFile(to_float32=False, color_type='color', imdecode_backend='cv2')" in recipe
    assert "scale" not in recipe
    assert recipe_of(dataset({**RESIZE, "scale": (80, 60)}, {**FLIP, "prob": 0.1}, PACK)) == recipe
    assert recipe_of(dataset({**RESIZE, "interpolation": "nearest"}, FLIP, PACK)) != recipe
    choice = {"type": "RandomChoiceResize", "scales": [(80, 60), (160, 120)], "keep_ratio": True}
    assert recipe_of(dataset(choice, FLIP, PACK)) == recipe
    padded = recipe_of(dataset(RESIZE, FLIP, {"type": "Pad", "size_divisor": 32}, PACK))
    assert padded != recipe_of(dataset(RESIZE, {"type": "Pad", "size_divisor": 32}, FLIP, PACK))


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        ({"type": "RandomCrop", "crop_size": (64, 64)}, "RandomCrop"),
        ({"type": "PhotoMetricDistortion"}, "PhotoMetricDistortion"),
        ({"type": "YOLOXHSVRandomAug"}, "YOLOXHSVRandomAug"),
        ({"type": "RandomResize", "scale": (160, 120), "ratio_range": (0.5, 2.0)}, "RandomResize"),
        ({"type": "RandomFlip", "prob": 0.5}, "RandomFlip"),
        ({"type": "Resize", "scale": (80, 60)}, "Resize"),
        ({"type": "RandomAffine"}, "RandomAffine"),
    ],
)
def test_what_cannot_be_keyed_is_named(transform: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=f"Cannot cache the teacher: the training pipeline contains {named}"):
        recipe_of(dataset(RESIZE, FLIP, transform, PACK))


def test_metadata_that_lack_the_flip() -> None:
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    with pytest.raises(UserError, match="meta_keys lacks flip, flip_direction"):
        recipe_of(dataset(RESIZE, FLIP, {**PACK, "meta_keys": keys}))
    recipe_of(dataset(RESIZE, {**PACK, "meta_keys": keys}))


@pytest.mark.slow
def test_wrappers() -> None:
    plain = recipe_of(dataset(RESIZE, FLIP, PACK))
    assert recipe_of(dataset(RESIZE, FLIP, PACK, wrapper="RepeatDataset", times=3)) == plain
    balanced = dataset(RESIZE, FLIP, PACK, wrapper="ClassBalancedDataset", oversample_thr=1e-3)
    assert recipe_of(balanced) == plain
    assert len(base_datasets(dataset(RESIZE, PACK, wrapper="ConcatDataset"))) == 2
    other = [*LOAD, {**RESIZE, "interpolation": "nearest"}, PACK]
    with pytest.raises(UserError, match="data sets have different pipelines"):
        recipe_of(dataset(RESIZE, PACK, wrapper="ConcatDataset", pipeline=other))
    mosaic = [{"type": "Mosaic", "img_scale": (160, 120)}, PACK]
    with pytest.raises(UserError, match="the training pipeline contains MultiImageMixDataset"):
        recipe_of(dataset(RESIZE, wrapper="MultiImageMixDataset", pipeline=mosaic))


def test_each_way_that_a_pipeline_may_go() -> None:
    flips = {"type": "RandomFlip", "prob": [0.3, 0.3], "direction": ["horizontal", "vertical"]}
    choice = {"type": "RandomChoiceResize", "scales": [(80, 60), (160, 120)], "keep_ratio": True}
    data = dataset(choice, flips, PACK)
    ways = variants(data.pipeline)
    assert len(ways) == 6
    info = data.get_data_info(0)
    seen = {_view(way, info) for way in ways}
    assert seen == {
        (shape, direction)
        for shape in ((60, 80), (120, 160))
        for direction in (None, "horizontal", "vertical")
    }
    np.random.seed(0)
    assert {_view(data.pipeline, info) for _ in range(60)} == seen
    assert len(variants(dataset(RESIZE, {**FLIP, "prob": 1.0}, PACK).pipeline)) == 1
    assert len(variants(dataset(RESIZE, {**FLIP, "prob": 0.0}, PACK).pipeline)) == 1
    assert len(variants(dataset(RESIZE, PACK).pipeline)) == 1


def _view(pipeline: Compose, info: dict[str, Any]) -> tuple[Any, Any]:
    meta = pipeline({**info})["data_samples"].metainfo
    assert meta["flip"] == (meta["flip_direction"] is not None)
    return tuple(meta["img_shape"]), meta["flip_direction"]
