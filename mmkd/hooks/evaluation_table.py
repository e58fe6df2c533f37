"""A W&B table of a few validation images: ground truth, teacher, student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from mmkd.teachers import build_detector, teacher_model_and_checkpoint

Boxes = list[dict[str, Any]]


@dataclass
class Example:
    """An image with its annotations and detections; boxes in W&B's format."""

    image: str
    ground_truth: Boxes | None
    teacher: Boxes | None
    student: Boxes


class EvaluationTable:
    """Collects the first images of each validation, with the student's detections.

    The teacher is built and run once, for these images only: the training's teacher skips layers that the
    losses do not read.

    Args:
        num_images: the maximum number of images.
        score_threshold: boxes below it are left out, in [0, 1].
        class_names: the data set's class names.
        teacher: the teacher's config; ``None`` omits its column.
    """

    def __init__(
        self,
        num_images: int,
        score_threshold: float,
        class_names: Sequence[str],
        teacher: Mapping[str, Any] | None,
    ) -> None:
        self.num_images = num_images
        self.score_threshold = score_threshold
        self.class_names = list(class_names)
        self.teacher = teacher
        self.examples: list[Example] = []
        self._taught: dict[str, Boxes] = {}
        self._model: Any = None

    def begin(self) -> None:
        """Discard the student's detections from the last validation."""
        self.examples, self._model = [], None

    def collect(self, data_batch: Mapping[str, Any], outputs: Sequence[Any]) -> None:
        """Keep images of the batch until the table is full.

        Args:
            data_batch: a batch from the data loader.
            outputs: the student's data samples.
        """
        room = self.num_images - len(self.examples)
        if room <= 0:
            self._model = None
            return
        outputs = outputs[:room]
        if self.teacher is not None and any(sample.img_path not in self._taught for sample in outputs):
            self._ask_teacher(data_batch, len(outputs), outputs[0].pred_instances.bboxes.device)
        for sample in outputs:
            truth = sample.gt_instances if "gt_instances" in sample else None
            example = Example(
                image=sample.img_path,
                ground_truth=None if truth is None else self._boxes(truth.bboxes, truth.labels),
                teacher=self._taught.get(sample.img_path),
                student=self._detections(sample),
            )
            self.examples.append(example)

    def build(self) -> Any:
        """The `wandb.Table`: one row per image, with the three pictures side by side."""
        import wandb

        columns: dict[str, list[Boxes | None]] = {
            "ground truth": [example.ground_truth for example in self.examples],
            "teacher": [example.teacher for example in self.examples],
            "student": [*(example.student for example in self.examples)],
        }
        columns = {name: boxes for name, boxes in columns.items() if any(b is not None for b in boxes)}
        labels = dict(enumerate(self.class_names))
        table = wandb.Table(columns=["file", *columns])
        for row, example in enumerate(self.examples):
            pictures = [
                wandb.Image(
                    mmcv.imread(example.image, channel_order="rgb"),
                    boxes={name: {"box_data": boxes[row] or [], "class_labels": labels}},
                )
                for name, boxes in columns.items()
            ]
            table.add_data(Path(example.image).name, *pictures)
        return table

    def _ask_teacher(self, data_batch: Mapping[str, Any], count: int, device: torch.device) -> None:
        assert self.teacher is not None
        if self._model is None:
            self._model = build_detector(*teacher_model_and_checkpoint(self.teacher))[0].to(device)
        part = {key: values[:count] for key, values in data_batch.items()}
        for sample in self._model.test_step(part):
            self._taught[sample.img_path] = self._detections(sample)

    def _detections(self, sample: Any) -> Boxes:
        found = sample.pred_instances
        found = found[found.scores >= self.score_threshold]
        return self._boxes(found.bboxes, found.labels, found.scores)

    def _boxes(self, boxes_N4: Any, labels_N: Tensor, scores_N: Tensor | None = None) -> Boxes:
        boxes = []
        for index, (corners, label) in enumerate(zip(get_box_tensor(boxes_N4).tolist(), labels_N.tolist())):
            position = dict(zip(("minX", "minY", "maxX", "maxY"), corners))
            box = {"position": position, "domain": "pixel", "class_id": label}
            box["box_caption"] = self.class_names[label]
            if scores_N is not None:
                score = float(scores_N[index])
                box["scores"] = {"score": score}
                box["box_caption"] += f" {score:.2f}"
            boxes.append(box)
        return boxes
