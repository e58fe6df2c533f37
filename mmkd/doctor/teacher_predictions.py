"""Predictions of a teacher on validation images, with training or other inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor

from mmkd.datasets import class_names
from mmkd.doctor.agreement import Detections
from mmkd.doctor.setup import TrainingSetup
from mmkd.outputs.example import example_pixels
from mmkd.registry import MODELS
from mmkd.teachers import build_detector, check_class_map, teacher_model_and_checkpoint
from mmkd.teachers.building import class_names_of
from mmkd.teachers.pixels import Renormalizer

# A teacher without class names has at most this many more classes than the data set.
_MANY = 20_000


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher with all its layers, and how its classes map to the data set's.

    Attributes:
        entry: the teacher's entry in the config.
        detector: the frozen detector.
        checkpoint: path or URL; ``None`` if its weights are random.
        preprocessor: the config of its data preprocessor.
        names: its class names, if the checkpoint has them.
        class_map: from the data set's class names to its own.
        channels: its images' number of channels.
    """

    entry: Mapping[str, Any]
    detector: Any
    checkpoint: str | None
    preprocessor: Mapping[str, Any]
    names: tuple[str, ...] | None
    class_map: Mapping[str, str]
    channels: int

    def table(self, classes: Sequence[str]) -> Tensor:
        """For each of the teacher's classes the data set's class, −1 for none; by name, else by order."""
        if self.names is None:
            return torch.tensor([*range(len(classes)), *[-1] * _MANY])
        return class_table(self.names, classes, self.class_map)


def class_table(names: Sequence[str], classes: Sequence[str], class_map: Mapping[str, str]) -> Tensor:
    """For each of a teacher's class names the data set's matching class, −1 for none.

    Args:
        names: the teacher's class names.
        classes: the data set's classes.
        class_map: from the data set's class names to the teacher's.
    """
    theirs = [class_map.get(name, name) for name in classes]
    return torch.tensor([theirs.index(name) if name in theirs else -1 for name in names])


def load_teacher(entry: Mapping[str, Any], device: str) -> LoadedTeacher:
    """Build a complete teacher and load it strictly.

    Raises:
        UserError: as in `teacher_model_and_checkpoint` and `build_detector`.
    """
    model_cfg, checkpoint = teacher_model_and_checkpoint(entry)
    detector, meta = build_detector(copy.deepcopy(model_cfg), checkpoint, head=None)
    channels = example_pixels(detector, detector.extract_feat).shape[1]
    preprocessor = model_cfg.get("data_preprocessor") or {"type": "mmdet.DetDataPreprocessor"}
    return LoadedTeacher(
        entry,
        detector.to(device),
        checkpoint,
        preprocessor,
        class_names_of(meta),
        check_class_map(entry.get("class_map")),
        channels,
    )


def load_images(
    setup: TrainingSetup, numbers: Sequence[int], pipeline: Sequence[Any] | None = None
) -> list[Any]:
    """Load validation images by index, through their own pipeline or another."""
    dataset = setup.dataset("val")
    if pipeline is None:
        return [dataset[number] for number in numbers]
    transforms = Compose(copy.deepcopy(list(pipeline)))
    return [transforms(dataset.get_data_info(number)) for number in numbers]


@torch.inference_mode()
def detect(
    setup: TrainingSetup,
    teacher: LoadedTeacher,
    numbers: Sequence[int],
    *,
    images: Sequence[Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
) -> list[Detections]:
    """A teacher's predictions, with the student's pixels converted to its own.

    Args:
        setup: the training to check.
        teacher: the teacher.
        numbers: indices of validation images.
        images: the result of `load_images` for them; loaded one by one if not given.
        preprocessor: another data preprocessor for the teacher.
    """
    dataset = setup.dataset("val")
    own = setup.data_preprocessor()
    theirs = MODELS.build({**(teacher.preprocessor if preprocessor is None else preprocessor)})
    renormalize = Renormalizer(own, theirs, teacher.channels)
    table = teacher.table(class_names(dataset.metainfo) or ())
    found = []
    for position, number in enumerate(numbers):
        image = load_images(setup, [number])[0] if images is None else images[position]
        data = own(pseudo_collate([copy.deepcopy(image)]), False)
        samples = data["data_samples"]
        pixels = renormalize(data["inputs"], [sample.img_shape for sample in samples])
        sample = teacher.detector.predict(pixels, samples)[0]
        instances = sample.pred_instances.cpu()
        labels = table[instances.labels]
        kept = labels >= 0
        height, width = sample.ori_shape[:2]
        boxes = get_box_tensor(instances.bboxes)
        truth = dataset.get_data_info(number)["instances"]
        found.append(Detections(height, width, boxes[kept], instances.scores[kept], labels[kept], truth))
    return found
