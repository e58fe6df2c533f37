"""Predictions of a teacher on validation images, with training or other inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
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

# A teacher without class names has at most this many classes more than the data set.
_MANY = 20_000


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher with all of its layers, and its classes among the data set's.

    Attributes:
        entry: the teacher's in the config.
        detector: it, frozen.
        checkpoint: path or URL; ``None`` if its weights are random.
        preprocessor: the config of its data preprocessor.
        names: its classes, if the checkpoint names them.
        class_map: from a name of the data set's to its own.
        channels: of its images.
    """

    entry: Mapping[str, Any]
    detector: Any
    checkpoint: str | None
    preprocessor: Mapping[str, Any]
    names: tuple[str, ...] | None
    class_map: Mapping[str, str]
    channels: int

    def table(self, classes: Sequence[str]) -> Tensor:
        """For each class of the teacher's the data set's, −1 for none; by name, else by order."""
        if self.names is None:
            return torch.tensor([*range(len(classes)), *[-1] * _MANY])
        return class_table(self.names, classes, self.class_map)


def class_table(names: Sequence[str], classes: Sequence[str], class_map: Mapping[str, str]) -> Tensor:
    """For each of a teacher's names the class of the data set's that it means, −1 for none.

    Args:
        names: the teacher's.
        classes: the data set's.
        class_map: from a name of the data set's to the teacher's.
    """
    theirs = [class_map.get(name, name) for name in classes]
    return torch.tensor([theirs.index(name) if name in theirs else -1 for name in names])


def load_teacher(entry: Mapping[str, Any], device: str) -> LoadedTeacher:
    """Build a teacher whole and load it strictly.

    Raises:
        UserError: as `teacher_model_and_checkpoint` and `build_detector`.
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
    """Validation images by number, through their own pipeline or another."""
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
    """What a teacher predicts, the student's pixels turned into its own.

    Args:
        setup: the training.
        teacher: the teacher.
        numbers: of validation images.
        images: what `load_images` gave for them; read one by one if not given.
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
        boxes = getattr(instances.bboxes, "tensor", instances.bboxes)  # mmdet's HorizontalBoxes
        truth = dataset.get_data_info(number)["instances"]
        found.append(Detections(height, width, boxes[kept], instances.scores[kept], labels[kept], truth))
    return found
