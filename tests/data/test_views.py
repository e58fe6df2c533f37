"""Boxes of the file go where the pipeline's own boxes go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import init_default_scope

from mmkd.data import TracedPipeline, follow
from mmkd.errors import UserError

SIDE = (120, 160)
CHAINS: dict[str, list[dict[str, Any]]] = {
    "resize": [{"type": "Resize", "scale": (90, 60), "keep_ratio": True}],
    "resize of another ratio": [{"type": "Resize", "scale": (300, 60), "keep_ratio": False}],
    "random resize": [
        {"type": "RandomResize", "scale": (200, 100), "ratio_range": (0.5, 2.0), "keep_ratio": True}
    ],
    "choice of resizes": [
        {"type": "RandomChoiceResize", "scales": [(90, 60), (200, 150)], "keep_ratio": True}
    ],
    "fixed shape": [{"type": "FixShapeResize", "width": 64, "height": 96, "keep_ratio": True}],
    **{
        f"{way} flip": [{"type": "RandomFlip", "prob": 1.0, "direction": way}]
        for way in ("horizontal", "vertical", "diagonal")
    },
    "crop": [{"type": "RandomCrop", "crop_size": (60, 70), "allow_negative_crop": True}],
    "crop, then rotate": [
        {"type": "RandomCrop", "crop_size": (60, 70), "allow_negative_crop": True},
        {"type": "Rotate", "prob": 1.0, "max_mag": 30.0},
    ],
    "shear and shift": [{"type": "ShearX", "prob": 1.0}, {"type": "TranslateY", "prob": 1.0}],
    "affine": [{"type": "RandomAffine"}],
    "affine with a border": [{"type": "RandomAffine", "border": (-20, -10)}],
    "color": [
        {"type": "YOLOXHSVRandomAug"},
        {"type": "Color", "prob": 1.0},
        {"type": "PhotoMetricDistortion"},
    ],
    "pad": [{"type": "Pad", "size_divisor": 64}],
    "DETR's choice": [
        {
            "type": "RandomChoice",
            "transforms": [
                [{"type": "RandomChoiceResize", "scales": [(90, 60), (200, 150)], "keep_ratio": True}],
                [
                    {"type": "RandomChoiceResize", "scales": [(180, 120)], "keep_ratio": True},
                    {"type": "RandomCrop", "crop_size": (60, 70), "allow_negative_crop": True},
                    {"type": "RandomChoiceResize", "scales": [(90, 60)], "keep_ratio": True},
                ],
            ],
        }
    ],
    "all of it": [
        {"type": "RandomResize", "scale": (200, 150), "ratio_range": (0.8, 1.5), "keep_ratio": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "RandomAffine"},
        {"type": "RandomCrop", "crop_size": (80, 90), "allow_negative_crop": True},
        {"type": "PhotoMetricDistortion"},
    ],
}


def traced(chain: list[dict[str, Any]]) -> TracedPipeline:
    init_default_scope("mmdet")
    pack = {"type": "PackDetInputs", "meta_keys": ("img_shape",)}
    return TracedPipeline([TRANSFORMS.build(one) for one in [*chain, pack]])


def sample(boxes_M4: np.ndarray) -> dict[str, Any]:
    return {
        "img": np.random.randint(0, 255, (*SIDE, 3), dtype=np.uint8),
        "img_shape": SIDE,
        "gt_bboxes": HorizontalBoxes(boxes_M4.astype(np.float32)),
        "gt_bboxes_labels": np.arange(len(boxes_M4)),
        "gt_ignore_flags": np.zeros(len(boxes_M4), dtype=bool),
    }


def some_boxes(count: int = 30) -> np.ndarray:
    corners = np.random.rand(count, 2, 2) * (SIDE[1], SIDE[0])
    return np.concatenate([corners.min(1), corners.max(1) + 1], axis=1).clip(
        0, [SIDE[1], SIDE[0], SIDE[1], SIDE[0]]
    )


@pytest.mark.parametrize("name", CHAINS)
def test_boxes_follow_as_annotations_do(name: str) -> None:
    pipeline = traced(CHAINS[name])
    for seed in range(12):
        np.random.seed(seed)
        boxes_M4 = some_boxes()
        packed = pipeline(sample(boxes_M4))["data_samples"]
        wanted = packed.gt_instances
        found_M4, kept = follow(boxes_M4, packed.metainfo["view"])
        by_label = dict(zip(kept.tolist(), found_M4))
        labels = wanted.labels.tolist()
        assert set(labels) >= set(by_label), "boxes without area are no objects"
        for label, box_4 in zip(labels, wanted.bboxes.tensor.numpy()):
            if label in by_label:
                np.testing.assert_allclose(by_label[label], box_4, atol=2e-3)
            else:
                assert (box_4[2:] - box_4[:2]).min() <= 1e-3


def test_random_numbers_are_those_of_the_pipeline_alone() -> None:
    chain = CHAINS["all of it"]
    images = []
    for kind in (traced(chain), traced(chain).transforms):
        np.random.seed(3)
        data: Any = sample(some_boxes())
        for transform in [kind] if isinstance(kind, TracedPipeline) else kind:
            data = transform(data)
        images.append(data["inputs"])
    assert (images[0] == images[1]).all()


def test_an_image_without_objects_has_a_view() -> None:
    np.random.seed(0)
    packed = traced(CHAINS["all of it"])(sample(np.zeros((0, 4))))["data_samples"]
    assert len(packed.metainfo["view"]) == 4


def test_the_homography_is_kept_for_who_asks_for_it() -> None:
    pack = {"type": "PackDetInputs", "meta_keys": ("homography_matrix",)}
    init_default_scope("mmdet")
    resize = {"type": "Resize", "scale": (80, 60), "keep_ratio": True}
    pipeline = TracedPipeline([TRANSFORMS.build(one) for one in (resize, resize, pack)])
    packed = pipeline(sample(some_boxes()))["data_samples"]
    np.testing.assert_allclose(packed.metainfo["homography_matrix"], np.diag([0.5, 0.5, 1]))


@pytest.mark.parametrize(
    "one",
    [
        {"type": "CachedMosaic", "img_scale": (64, 64)},
        {"type": "CachedMixUp", "img_scale": (64, 64)},
        {"type": "CopyPaste"},
        {"type": "Expand"},
        {"type": "MinIoURandomCrop"},
        {"type": "RandomShift"},
        {"type": "RandomChoice", "transforms": [[{"type": "RandomAffine"}], [{"type": "Expand"}]]},
    ],
    ids=lambda one: one["type"],
)
def test_what_mixes_or_moves_unseen_is_refused(one: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=one["type"]) as error:
        traced([one])
    assert error.value.remedy is not None
