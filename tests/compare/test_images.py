from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmkd.compare.images import Boxes, Image, match, most_different, read_images
from mmkd.compare.run_configs import evaluation_config

from .fabricated import write_predictions


def boxes(*corners: list[float], label: int = 0) -> Boxes:
    count = len(corners)
    array = np.array(corners, np.float32).reshape(-1, 4)
    return Boxes(array, np.full(count, label, np.int64), np.ones(count, bool))


def sample(*rows: tuple[list[float], float, int]) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "pred_instances": {
            "bboxes": torch.tensor([row[0] for row in rows]).reshape(-1, 4),
            "scores": torch.tensor([row[1] for row in rows]),
            "labels": torch.tensor([row[2] for row in rows], dtype=torch.long),
        }
    }


def test_match() -> None:
    truth, crowd = boxes([0, 0, 10, 10], [20, 0, 30, 10]), boxes([50, 0, 60, 10])
    found = match(
        sample(
            ([0, 0, 10, 9], 0.9, 0),  # right
            ([0, 0, 10, 10], 0.8, 0),  # the same object again
            ([20, 0, 30, 10], 0.7, 1),  # another class
            ([20, 0, 30, 10], 0.2, 0),  # not sure enough
            ([50, 0, 60, 10], 0.6, 0),  # in a crowd
        ),
        truth,
        crowd,
    )
    assert found.right.tolist() == [True, False, False]
    assert found.labels.tolist() == [0, 0, 1]
    assert len(match(sample(), truth, crowd).labels) == 0


def test_most_different() -> None:
    images = [
        Image(f"{i}.jpg", boxes(), {}, {"kd": kd, "student": 0.5})
        for i, kd in enumerate((0.5, 0.9, 0.2, 0.6))
    ]
    gains, losses = most_different(images, "kd", "student", 2)
    assert [image.path for image in gains] == ["1.jpg", "3.jpg"]
    assert [image.path for image in losses] == ["2.jpg"]


@pytest.mark.slow
def test_images_of_a_split(tmp_path: Path) -> None:
    student = Config.fromfile("configs/bccd/student.py")
    cfg = evaluation_config(student, student, "test")
    for name, missed in (("kd", 0), ("student", 2)):
        write_predictions(cfg, tmp_path / f"{name}.pkl", missed)
    images, classes = read_images(cfg, {name: tmp_path / f"{name}.pkl" for name in ("kd", "student")})
    assert classes == ["Platelets", "RBC", "WBC"]
    assert len(images) == 72
    objects = len(images[1].truth.labels)
    assert images[1].f1["kd"] == 1.0
    assert images[1].f1["student"] == (objects - 2) / objects
    assert images[1].found["student"].right.tolist() == [False] * 2 + [True] * (objects - 2)
    assert Path(images[1].path).is_file()
