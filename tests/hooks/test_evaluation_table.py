from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmkd.hooks import evaluation_table
from mmkd.hooks.evaluation_table import EvaluationTable

from ..conftest import batch, build, save_teacher, tiny_atss, tiny_teacher


def sample(path: str, scores: list[float], truth: bool = True) -> Any:
    found = DetDataSample(metainfo={"img_path": path})
    count = len(scores)
    found.pred_instances = InstanceData(
        bboxes=torch.arange(count * 4.0).reshape(count, 4),
        labels=torch.arange(count),
        scores=torch.tensor(scores),
    )
    if truth:
        found.gt_instances = InstanceData(bboxes=torch.tensor([[1.0, 2, 3, 4]]), labels=torch.tensor([2]))
    return found


def table(num_images: int = 3, teacher: Any = None) -> EvaluationTable:
    return EvaluationTable(num_images, 0.3, ("a", "b", "c"), teacher)


def test_collects_the_first_images_of_the_last_validation() -> None:
    examples = table()
    for validation in ("old", "new"):
        examples.begin()
        for first in (0, 2, 4):
            outputs = [sample(f"{validation}{index}", [0.9]) for index in (first, first + 1)]
            examples.collect({}, outputs)
    assert [example.image for example in examples.examples] == ["new0", "new1", "new2"]


def test_boxes_as_wandb_takes_them() -> None:
    examples = table()
    examples.collect({}, [sample("x", [0.9, 0.2, 0.5])])
    example = examples.examples[0]
    assert example.teacher is None
    position = {"minX": 1, "minY": 2, "maxX": 3, "maxY": 4}
    truth = {"position": position, "domain": "pixel", "class_id": 2, "box_caption": "c"}
    assert example.ground_truth == [truth]
    assert [(box["class_id"], box["box_caption"]) for box in example.student] == [
        (0, "a 0.90"),
        (2, "c 0.50"),
    ]
    assert example.student[1]["scores"]["score"] == pytest.approx(0.5)
    assert example.student[1]["position"] == {"minX": 8, "minY": 9, "maxX": 10, "maxY": 11}


def test_the_teacher_is_asked_once_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch((64, 96), (96, 64))
    for index, one in enumerate(data["data_samples"]):
        one.set_metainfo({"img_path": str(index)})
    teacher = {"config": tiny_teacher(), "checkpoint": save_teacher(tmp_path / "t.pth", tiny_teacher())}
    student = build(tiny_atss()).eval()
    asked: list[int] = []
    original = evaluation_table.build_detector

    def counted(*arguments: Any) -> Any:
        model, meta = original(*arguments)
        step = model.test_step

        def test_step(part: dict[str, Any]) -> Any:
            asked.append(len(part["inputs"]))
            return step(part)

        model.test_step = test_step
        return model, meta

    monkeypatch.setattr(evaluation_table, "build_detector", counted)
    examples = EvaluationTable(2, 0.0, ("a", "b", "c"), teacher)
    with torch.no_grad():
        for _ in range(2):
            examples.begin()
            examples.collect(data, student.test_step(data))
    assert asked == [2]
    expected = original(teacher["config"], teacher["checkpoint"])[0].test_step(data)
    for example, found in zip(examples.examples, expected):
        assert example.teacher is not None
        boxes = [list(box["position"].values()) for box in example.teacher]
        assert boxes == found.pred_instances.bboxes.tolist()


def test_columns(tmp_path: Path) -> None:
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, np.zeros((20, 20, 3), np.uint8))
    without_truth = table()
    without_truth.collect({}, [sample(path, [0.9], truth=False)])
    assert without_truth.build().columns == ["file", "student"]
    with_truth = table()
    with_truth.collect({}, [sample(path, [0.9])])
    built = with_truth.build()
    assert built.columns == ["file", "ground truth", "student"]
    assert built.data[0][0] == "image.png"
    assert len(built.data) == 1
