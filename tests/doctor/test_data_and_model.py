from __future__ import annotations

from typing import Any

import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config

from mmkd.compat import load_config
from mmkd.doctor.data_and_model import heads_of
from mmkd.registry import TRANSFORMS

from ..heads.cases import STOCK_CONFIGS
from .bccd import each, errors


@pytest.mark.parametrize("count", [1, 2, 4, 80])
def test_classes_of_the_head(count: int) -> None:
    (found,) = errors(lambda cfg: cfg.model.bbox_head.update(num_classes=count))
    assert f"model.bbox_head.num_classes is {count}; the data set has 3: Platelets, RBC, WBC" in found


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", ["roi_head.bbox_head", "roi_head.mask_head"]),
        (
            "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
            [f"roi_head.bbox_head[{stage}]" for stage in range(3)],
        ),
        ("dino/dino-4scale_r50_8xb2-12e_coco.py", ["bbox_head"]),
        ("solo/solo_r50_fpn_1x_coco.py", ["mask_head"]),
        (
            "htc/htc_r50_fpn_1x_coco.py",
            [f"roi_head.{name}_head[{i}]" for name in ("bbox", "mask") for i in range(3)],
        ),
    ],
)
def test_heads_of_other_detectors(config: str, places: list[str]) -> None:
    model = load_config(STOCK_CONFIGS / config).model
    assert dict(heads_of(model)) == {f"model.{place}": 80 for place in places}


def test_a_head_whose_class_says_how_many() -> None:
    model = {"roi_head": {"bbox_head": {"type": "Shared2FCBBoxHead"}}, "rpn_head": {"num_classes": 1}}
    assert dict(heads_of(model)) == {"model.roi_head.bbox_head": 80}


@pytest.mark.parametrize("which", ["train", "val"])
def test_keys_that_a_sample_lacks(which: str) -> None:
    def damage(cfg: Config) -> None:
        cfg[f"{which}_dataloader"].dataset.pipeline[-1] = {"type": "PackDetInputs", "meta_keys": ("img_id",)}

    (found,) = errors(damage)
    assert f"{which}: pipeline: PackDetInputs.meta_keys lacks" in found
    assert "img_shape" in found


def test_channels() -> None:
    grey = each(lambda dataset: dataset.pipeline[0].update(color_type="grayscale"))
    found = errors(grey)
    assert len(found) == 2
    assert all("1 channel (color_type=" in one for one in found)
    one_value = {"mean": [114.0], "std": [57.0], "bgr_to_rgb": False}
    found = errors(grey, lambda cfg: cfg.model.data_preprocessor.update(one_value))
    assert all("loaded with 1 channel, and ResNet takes 3" in one for one in found)
    good = (
        grey,
        lambda cfg: cfg.model.data_preprocessor.update(one_value),
        lambda cfg: cfg.model.backbone.update(in_channels=1),
    )
    assert errors(*good) == []
    assert all("3 channels, and ResNet takes 1" in one for one in errors(*good[2:]))
    fixed = [*good[:2], lambda cfg: cfg.model.update(backbone={"type": "MobileNetV2"})]
    assert all("MobileNetV2 takes 3" in one and "color_type='color'" in one for one in errors(*fixed))
    four = {"mean": [114.0] * 4, "std": [57.0] * 4}
    found = errors(lambda cfg: cfg.model.data_preprocessor.update(four))
    assert all("mean has 4 values; DetDataPreprocessor takes 1 or 3" in one for one in found)


def test_channels_that_a_transform_of_the_user_makes() -> None:
    """Nothing is claimed of them."""

    @TRANSFORMS.register_module(force=True)
    class AddsInfrared(BaseTransform):  # type: ignore[misc]
        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            return results

    wide = lambda cfg: cfg.model.backbone.update(in_channels=4)  # noqa: E731
    adds = each(lambda dataset: dataset.pipeline.insert(1, {"type": "AddsInfrared"}))
    assert errors(adds, wide) == []
    assert errors(wide)


@pytest.mark.parametrize(
    ("count", "found"),
    [("3", "num_classes is '3'"), (3.0, "num_classes is 3.0"), (None, "bbox_head has no num_classes")],
)
def test_a_head_with_no_number(count: Any, found: str) -> None:
    (told,) = errors(lambda cfg: cfg.model.bbox_head.update(num_classes=count))
    assert found in told
    assert "set model.bbox_head.num_classes=3" in told


def test_a_head_without_a_number() -> None:
    (told,) = errors(lambda cfg: cfg.model.bbox_head.pop("num_classes"))
    assert "model.bbox_head has no num_classes; the data set has 3" in told


@pytest.mark.parametrize("name", ["detector", "module"])
def test_heads_of_a_detector_in_a_detector(name: str) -> None:
    model = {"type": "SoftTeacher", name: {"roi_head": {"bbox_head": {"num_classes": 4}}}}
    assert dict(heads_of(model)) == {f"model.{name}.roi_head.bbox_head": 4}


def test_the_head_is_not_made_for_classes_that_are_not_there() -> None:
    told = errors(each(lambda dataset: dataset.update(metainfo=None)))
    (head,) = [one for one in told if one.startswith("head: classes")]
    assert head.endswith("first correct metainfo.classes, see above")


def test_classes_of_tracks_are_others() -> None:
    def damage(cfg: Config) -> None:
        cfg.val_dataloader.dataset = {"type": "MOTChallengeDataset", "pipeline": []}

    assert not [one for one in errors(damage) if "classes" in one]


def test_things_and_stuff() -> None:
    """Heads of panoptic detectors are for the things alone."""
    panoptic = each(lambda dataset: dataset.update(type="CocoPanopticDataset", metainfo=None))
    assert not [one for one in errors(panoptic) if "head: classes: model" in one]


def test_words_instead_of_classes() -> None:
    """The heads of GLIP and Grounding DINO are for the tokens of a text."""

    def damage(cfg: Config) -> None:
        cfg.model.bbox_head.num_classes = 256
        cfg.model.language_model = {"type": "BertModel"}

    (told,) = errors(damage)
    assert told.startswith("head: classes: not checked")


def test_images_that_are_padded_by_a_border() -> None:
    """CenterNet's are."""

    def damage(cfg: Config) -> None:
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "border")
        cfg.val_dataloader.dataset.pipeline[-1] = {"type": "PackDetInputs", "meta_keys": keys}

    assert errors(damage) == []
