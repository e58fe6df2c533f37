from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmkd.data import PackTwoViews, UnlabelledImages
from mmkd.errors import UserError
from mmkd.registry import DATASETS, TRANSFORMS

LOADS = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "Resize", "scale": (64, 64), "keep_ratio": True},
    {"type": "RandomFlip", "prob": 1.0},
]
COLOUR = {"type": "PhotoMetricDistortion", "brightness_delta": 60}
GREY = {"type": "RandomErasing", "n_patches": 2, "ratio": 0.3}


def samples(*strong: Any, seed: int = 0, last: Any = None) -> Any:
    pack = last or {"type": "PackTwoViews", "strong": list(strong)}
    data = UnlabelledImages(images="data/bccd/images/val", indices=1, pipeline=[*LOADS, pack])
    np.random.seed(seed)
    return data[0]


def test_the_teacher_sees_the_image_before_the_strong_transforms() -> None:
    plain = samples(last={"type": "PackDetInputs"})
    assert "teacher_img" not in plain["data_samples"]
    for seed in range(3):
        found = samples(COLOUR, GREY, seed=seed)
        view = found["data_samples"].teacher_img
        assert torch.equal(view, plain["inputs"])
        assert view.dtype == torch.uint8
        assert found["inputs"].shape == view.shape
        assert not torch.equal(found["inputs"], view)
        assert found["data_samples"].flip


def test_without_strong_transforms_both_are_one() -> None:
    found = samples()
    assert torch.equal(found["inputs"], found["data_samples"].teacher_img)


def test_it_takes_the_options_of_the_packer() -> None:
    found = samples(last={"type": "PackTwoViews", "strong": [], "meta_keys": ("img_path",)})
    assert found["data_samples"].img_path.endswith(".jpg")
    assert "ori_shape" not in found["data_samples"]


def test_labelled_images_too() -> None:
    cfg = {"type": "CocoDataset", "data_root": "data/bccd/", "ann_file": "annotations/val.json"}
    cfg |= {"data_prefix": {"img": "images/val/"}, "indices": 1, "metainfo": {"classes": ("RBC",)}}
    pack = {"type": "PackTwoViews", "strong": [GREY]}
    sample = DATASETS.build({**cfg, "pipeline": [*LOADS, pack]})[0]["data_samples"]
    assert len(sample.gt_instances) > 0
    assert sample.teacher_img.shape[1:] == sample.img_shape


@pytest.mark.parametrize(
    "transform",
    [
        {"type": "RandomFlip", "prob": 1.0},
        {"type": "Resize", "scale": (32, 32)},
        {"type": "Rotate", "prob": 1.0, "level": 5},
        {"type": "RandomCrop", "crop_size": (16, 16), "allow_negative_crop": True},
        {"type": "Pad", "size_divisor": 32},
    ],
    ids=lambda transform: transform["type"],
)
def test_what_moves_pixels_is_refused_when_it_does(transform: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{transform['type']} moves pixels after the teacher's view"):
        samples(COLOUR, transform)


@pytest.mark.parametrize("name", ["RandomShift", "MixUp", "CachedMosaic"])
def test_what_moves_pixels_without_a_trace_is_refused_at_once(name: str) -> None:
    inner = {"type": name, "prob": 0.5} if name == "RandomShift" else {"type": name, "img_scale": (64, 64)}
    with pytest.raises(UserError, match=f"{name} moves pixels"):
        TRANSFORMS.build({"type": "PackTwoViews", "strong": [{"type": "RandomApply", "transforms": [inner]}]})


def test_a_strong_transform_may_drop_the_image() -> None:
    packer = PackTwoViews(strong=[lambda results: None])
    assert packer.transform({"img": np.zeros((4, 4, 3), np.uint8)}) is None
