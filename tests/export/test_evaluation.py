from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.export import evaluate, image_size, images_of, training_images

from .conftest import Detector


@pytest.fixture
def half_size(detector: Detector, tmp_path: Path) -> Config:
    """The test config with two images at half their size."""
    cfg = deepcopy(detector[1])
    dataset = cfg.test_dataloader.dataset
    ann_file = Path(dataset.get("data_root", ""), dataset.ann_file)
    content = json.loads(ann_file.read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    dataset.ann_file = cfg.test_evaluator.ann_file = str(few)
    for step in dataset.pipeline:
        if step["type"] == "Resize":
            step["scale"] = (160, 120)
    return cfg


def test_true_boxes_in_pixels_of_the_input_are_perfect(half_size: Config) -> None:
    content = json.loads(Path(half_size.test_dataloader.dataset.ann_file).read_text())
    labels = {category["id"]: index for index, category in enumerate(content["categories"])}
    images: Iterator[dict[str, Any]] = iter(content["images"])

    def predict(images_N3HW: Tensor) -> list[InstanceData]:
        assert images_N3HW.shape == (1, 3, 120, 160)
        image = next(images)
        own = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        xywh_D4 = torch.tensor([each["bbox"] for each in own]) * 160 / image["width"]
        return [
            InstanceData(
                bboxes=torch.cat([xywh_D4[:, :2], xywh_D4[:, :2] + xywh_D4[:, 2:]], dim=1),
                scores=torch.ones(len(own)),
                labels=torch.tensor([labels[each["category_id"]] for each in own]),
            )
        ]

    assert evaluate(half_size, predict)["coco/bbox_mAP"] == pytest.approx(1, abs=1e-3)


def test_size_and_images_of_a_config(half_size: Config) -> None:
    assert image_size(half_size) == (160, 120)
    paths = training_images(half_size)
    assert len(paths) > 100
    (image_3HW,) = images_of(half_size, paths[:1])
    assert (image_3HW.shape, image_3HW.dtype) == ((3, 120, 160), torch.uint8)


def test_a_config_without_data() -> None:
    assert image_size(Config({})) is None
    assert training_images(Config({})) == []
