"""Compare detections with the ground truth, also under another class order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.evaluation import CocoMetric
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor

from mmkd.doctor.findings import Finding
from mmkd.functional import pairwise_iou

# Judge a class only with at least this many of its objects.
_ENOUGH = 10
# The probability that right and wrong names would favour another order this clearly by chance.
_CHANCE = 0.01
# What is clearly better raises AP by at least this much, absolute and as a factor.
_MORE, _TIMES = 0.05, 1.25
# Among the objects of classes that move, at least this much larger a share must get the right name.
_GAIN = 0.3
# Below the first AP it cannot be a trained teacher, whatever the data; below the second, hardly.
_NOTHING, _LITTLE = 0.05, 0.15
# Below this recall, the classes of the few detected objects mean nothing.
_RECALL = 0.3


@dataclass(frozen=True)
class Detections:
    """Detections and ground truth of one image.

    Attributes:
        height: height of the image file.
        width: width of the image file.
        boxes_N4: x1, y1, x2, y2 in pixels of the file.
        scores_N: in [0, 1].
        labels_N: indices of the data set's classes.
        instances: the ground truth, as in mmengine's data sets.
    """

    height: int
    width: int
    boxes_N4: Tensor
    scores_N: Tensor
    labels_N: Tensor
    instances: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Agreement:
    """How well detections agree with the ground truth.

    Attributes:
        ap: COCO's box AP, in [0, 1].
        ap_best: the AP in the best-fitting class order; equal to ``ap`` if none fits clearly better.
        recall: share of the objects that a box overlaps with an IoU of at least 0.5, whatever its class.
        matched: the number of these objects.
        right: share of these objects with the right class.
        order: from the predicted class to the true one, where they differ for certain.
    """

    ap: float
    ap_best: float
    recall: float
    matched: int
    right: float
    order: Mapping[int, int]


def judge(detections: Sequence[Detections], classes: Sequence[str]) -> Agreement:
    """Compare detections with the ground truth of the same images.

    Args:
        detections: with at least one object in total.
        classes: the data set's classes.
    """
    confusion_KK, objects = match(detections, len(classes))
    matched = int(confusion_KK.sum())
    recall = matched / max(1, objects)
    order = better_order(confusion_KK) if recall >= _RECALL else {}
    ap = average_precision(detections, classes)
    ap_best = ap
    if order:
        table_K = torch.arange(len(classes))
        for said, is_ in order.items():
            table_K[said] = is_
        moved = [replace(one, labels_N=table_K[one.labels_N]) for one in detections]
        ap_best = average_precision(moved, classes)
        if not clearly_better(ap_best, ap):  # it may explain names, but not detections
            order, ap_best = {}, ap
    return Agreement(
        ap=ap,
        ap_best=ap_best,
        recall=recall,
        matched=matched,
        right=float(np.trace(confusion_KK)) / max(1, matched),
        order=order,
    )


def clearly_better(ap: float, other: float) -> bool:
    """Whether an AP is better than another beyond chance."""
    return ap >= other + _MORE and ap >= other * _TIMES


def compared(seen: Agreement, images: int, expected: float | None, source: str) -> Finding:
    """Compare an AP on a few images with that on the whole data set.

    Args:
        seen: the measurement.
        images: the number of images measured.
        expected: the expected AP, in [0, 1].
        source: the source of the expectation, in words.
    """
    text = f"{seen.ap:.3f} on {images} images, {seen.recall:.0%} of objects found with an IoU of 0.5"
    remedy = "see the findings below; if there are none, check that this is the right checkpoint"
    if expected is not None:
        text += f"; {source} {expected:.3f}"
        # The AP of few images varies.
        if seen.ap < min(expected / 2, expected - scatter(images)):
            return Finding.error("teacher: AP", text, remedy)
        if seen.ap < expected - scatter(images):
            return Finding.warning("teacher: AP", text, remedy)
    elif source:
        text += f"; {source}"
    if seen.ap < _LITTLE:
        return Finding("error" if seen.ap < _NOTHING else "warning", "teacher: AP", text, remedy)
    return Finding.ok("teacher: AP", text)


def scatter(images: int) -> float:
    """How much the AP of this many images may differ from the overall AP by chance."""
    return 0.05 + 0.6 / math.sqrt(max(1, images))


def average_precision(detections: Sequence[Detections], classes: Sequence[str]) -> float:
    """COCO's box AP from mmdet's evaluator, over these images only; in [0, 1]."""
    metric = CocoMetric(metric="bbox", metric_items=["mAP"])
    metric.dataset_meta = {"classes": list(classes)}
    samples = [
        {
            "img_id": number,
            "ori_shape": (one.height, one.width),
            "instances": one.instances,
            "pred_instances": {"bboxes": one.boxes_N4, "scores": one.scores_N, "labels": one.labels_N},
        }
        for number, one in enumerate(detections)
    ]
    metric.process({}, samples)
    values = metric.evaluate(len(samples))
    return max(0.0, float(values.get("coco/bbox_mAP", 0.0)))  # missing if there is no box at all


def match(detections: Sequence[Detections], num_classes: int) -> tuple[NDArray[np.int64], int]:
    """The predicted class of each object.

    Each object takes the highest-scoring box with an IoU of at least 0.5, whatever its class.

    Returns:
        K×K counts, predicted class by true class; and the number of objects.
    """
    confusion_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
    objects = 0
    for one in detections:
        truth = [thing for thing in one.instances if not thing.get("ignore_flag", 0)]
        objects += len(truth)
        if not truth or not len(one.boxes_N4):
            continue
        truth_M4 = torch.tensor([thing["bbox"] for thing in truth], dtype=torch.float32)
        iou_NM = pairwise_iou(one.boxes_N4.float(), truth_M4)
        free_M = torch.ones(len(truth), dtype=torch.bool)
        for box in one.scores_N.argsort(descending=True).tolist():
            best = (iou_NM[box] * free_M).max(dim=0)
            if best.values >= 0.5:
                free_M[best.indices] = False
                confusion_KK[int(one.labels_N[box]), int(truth[int(best.indices)]["bbox_label"])] += 1
    return confusion_KK, objects


def better_order(confusion_KK: NDArray[np.int64]) -> dict[int, int]:
    """The class order that explains a confusion matrix, if it clearly differs from the current one.

    Every class has the same weight, whatever its frequency: the assignment maximises the mean over classes of
    the share of objects that get the right name.

    Args:
        confusion_KK: counts, predicted class by true class.

    Returns:
        From predicted to true class, a permutation without its fixed points; empty if the classes are in
        order, or a moved class has too few objects to rule out chance.
    """
    seen_K = confusion_KK.sum(axis=0)
    share_KK = confusion_KK / np.maximum(seen_K, 1) * (seen_K >= _ENOUGH)
    # Without evidence, a class stays where it is.
    said_K, is_K = linear_sum_assignment(share_KK + 1e-3 * np.eye(len(share_KK)), maximize=True)
    moved = {int(said): int(is_) for said, is_ in zip(said_K, is_K) if said != is_}
    known = [(said, is_) for said, is_ in moved.items() if seen_K[is_] >= _ENOUGH]
    if len(known) < len(moved) or not known:
        return {}
    there = sum(int(confusion_KK[said, is_]) for said, is_ in known)
    here = sum(int(confusion_KK[is_, is_]) for _, is_ in known)
    if binomtest(there, there + here, alternative="greater").pvalue > _CHANCE:
        return {}
    gain = sum(share_KK[said, is_] - share_KK[is_, is_] for said, is_ in known) / len(known)
    return moved if gain >= _GAIN else {}
