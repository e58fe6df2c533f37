"""Find images where student and distilled student differ most, by the F1 of their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
from mmdet.evaluation.functional.mean_ap import tpfp_default
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
from numpy.typing import NDArray

from mmkd.datasets import class_names
from mmkd.registry import DATASETS

SCORE, IOU = 0.3, 0.5


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image.

    Attributes:
        corners: N×4, x1 y1 x2 y2 in pixels of the file.
        labels: N, indices of classes.
        right: N, whether each is a true positive; all true for ground truth.
    """

    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Image:
    """An image of the split.

    Attributes:
        path: the image file.
        truth: the annotated objects.
        found: member → its boxes with scores of at least `SCORE`.
        f1: member → 2·TP / (detections + objects).
    """

    path: str
    truth: Boxes
    found: Mapping[str, Boxes]
    f1: Mapping[str, float]


def read_images(cfg: Config, predictions: Mapping[str, Path]) -> tuple[list[Image], list[str]]:
    """Match each member's boxes with the objects of each image.

    Only boxes with scores of at least `SCORE` count. A box is correct if its IoU with an object of its class
    is at least `IOU`; each object is matched once, to boxes in descending order of score.

    Args:
        cfg: an evaluation config.
        predictions: member → the file from ``tools/test.py --out``.

    Returns:
        The images with objects, and the class names.
    """
    init_default_scope(cfg.get("default_scope") or "mmdet")
    if cfg.get("custom_imports"):
        import_modules_from_strings(**cfg.custom_imports)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    found = {
        name: {sample["img_id"]: sample for sample in mmengine.load(path)}
        for name, path in predictions.items()
    }
    images = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        objects = [one for one in info["instances"] if not one.get("ignore_flag")]
        ignored = [one for one in info["instances"] if one.get("ignore_flag")]
        if not objects or any(info["img_id"] not in samples for samples in found.values()):
            continue
        truth = _truth(objects)
        boxes = {
            name: match(samples[info["img_id"]], truth, _truth(ignored)) for name, samples in found.items()
        }
        f1 = {
            name: 2.0 * each.right.sum() / (len(each.labels) + len(truth.labels))
            for name, each in boxes.items()
        }
        images.append(Image(info["img_path"], truth, boxes, f1))
    return images, list(class_names(dataset.metainfo) or ())


def most_different(
    images: Sequence[Image], member: str, base: str, each: int
) -> tuple[list[Image], list[Image]]:
    """The images where a member's F1 gains most over another's, and where it loses most.

    Args:
        images: images to choose from.
        member: name of the member to judge.
        base: name of the member to compare it with.
        each: the most images of either kind.
    """

    def gain(image: Image) -> float:
        return image.f1[member] - image.f1[base]

    ordered = sorted(images, key=gain, reverse=True)
    gains = [image for image in ordered[:each] if gain(image) > 0]
    losses = [image for image in ordered[::-1][:each] if gain(image) < 0]
    return gains, losses


def match(sample: Mapping[str, Any], truth: Boxes, ignored: Boxes) -> Boxes:
    """The boxes of a prediction that count, and which of them are correct.

    Args:
        sample: a prediction with ``pred_instances``.
        truth: the annotated objects.
        ignored: objects marked as ignored; boxes on them do not count.
    """
    instances = sample["pred_instances"]
    scores = np.asarray(instances["scores"], np.float32)
    keep = scores >= SCORE
    corners = np.asarray(instances["bboxes"], np.float32).reshape(-1, 4)[keep]
    labels, scores = np.asarray(instances["labels"])[keep], scores[keep]
    right = np.zeros(len(labels), bool)
    counts = np.ones(len(labels), bool)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        true, false = tpfp_default(
            np.hstack([corners[mine], scores[mine, None]]),
            truth.corners[truth.labels == label],
            ignored.corners[ignored.labels == label],
            iou_thr=IOU,
        )
        right[mine] = true[0] > 0
        counts[mine] = (true[0] + false[0]) > 0
    return Boxes(corners[counts], labels[counts], right[counts])


def _truth(objects: Sequence[Mapping[str, Any]]) -> Boxes:
    corners = np.array([one["bbox"] for one in objects], np.float32).reshape(-1, 4)
    labels = np.array([one["bbox_label"] for one in objects], np.int64)
    return Boxes(corners, labels, np.ones(len(labels), bool))
