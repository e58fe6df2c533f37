from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from mmkd.losses.ground_truth import gt_boxes, gt_labels, input_size

CORNERS = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 5.0, 6.0]]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [torch.tensor, np.array, lambda x: HorizontalBoxes(torch.tensor(x))])
def test_boxes_of_any_kind(kind: object) -> None:
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=kind(CORNERS), labels=torch.tensor([1, 0]))  # type: ignore[operator]
    assert gt_boxes(sample, CPU).tolist() == CORNERS
    assert gt_labels(sample, CPU).tolist() == [1, 0]


def test_an_image_without_objects() -> None:
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    assert gt_boxes(sample, CPU).shape == (0, 4)
    assert gt_labels(sample, CPU).shape == (0,)


def test_the_input_is_the_image_with_its_padding() -> None:
    sample = DetDataSample(metainfo={"img_shape": (100, 150)})
    assert input_size(sample) == (100, 150)
    sample.set_metainfo({"batch_input_shape": (128, 160)})
    assert input_size(sample) == (128, 160)
