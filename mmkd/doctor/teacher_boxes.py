"""Check teachers that provide only boxes, from a file or a function: right images, good boxes.

Shape suffixes: M boxes of one image, N boxes of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import get_box_tensor

from mmkd.data import Predictions, read_predictions
from mmkd.data.views import check_followed
from mmkd.datasets import class_names
from mmkd.doctor.agreement import Detections, compared, judge, match
from mmkd.doctor.findings import Finding, NotExamined, collect, shortened
from mmkd.doctor.setup import TrainingSetup
from mmkd.doctor.teacher_order import order_found
from mmkd.doctor.teacher_predictions import class_table
from mmkd.doctor.trial import spaced
from mmkd.teachers import BoxesTeacher, PredictionsTeacher, check_class_map, single_teachers
from mmkd.teachers.config import registered_class
from mmkd.teachers.pipeline import base_datasets

# To measure AP there, at least this share of the validation images must be in the file.
_SHARE = 0.5
# A function that finds less than this share of a batch's objects is wrong, or gets wrong input.
_RECALL, _OBJECTS = 0.1, 10


def gives_boxes(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is a prediction file or a function."""
    return issubclass(registered_class(entry) or object, BoxesTeacher)


def examine_boxes(setup: TrainingSetup, entry: Mapping[str, Any], number: int) -> Iterator[Finding]:
    """Check a teacher that provides only boxes.

    Args:
        setup: the training to check.
        entry: the teacher's entry in the config.
        number: the teacher's index in the config.
    """
    if not issubclass(registered_class(entry) or object, PredictionsTeacher):
        yield from examine_function(setup, number)
        return
    known = read_predictions(entry["predictions"], entry.get("classes"))
    yield Finding.ok(
        "teacher",
        f"{len(known.boxes_N4)} boxes of {len(known)} images in {entry['predictions']}, "
        + ("with per-class scores" if known.class_scores_NK is not None else "top class only"),
    )
    train = setup.dataset("train")
    yield from collect("teacher: pipeline", _pipeline, train)
    val = setup.dataset("val") if setup.cfg.get("val_dataloader") else None
    yield from examine_predictions(known, entry, train, val, setup.images)


def _pipeline(train: Any) -> Iterator[Finding]:
    for base in base_datasets(train):
        check_followed(base.pipeline.transforms)
    yield Finding.ok("teacher: pipeline", "boxes can follow all transforms")


def examine_predictions(
    known: Predictions, entry: Mapping[str, Any], train: Any, val: Any, most: int
) -> Iterator[Finding]:
    """Compare predictions with a training's data.

    Args:
        known: the predictions.
        entry: the teacher's entry in the config.
        train: the training data set, built.
        val: the validation data set, or ``None``.
        most: the number of images to measure AP on.
    """
    infos = _infos(train)
    at = [known.find(str(info["img_path"]), info.get("img_id")) for info in infos]
    yield from _images(known, infos, at)
    yield from collect("teacher: image sizes", _sizes, known, infos, at)
    classes = class_names(train.metainfo) or ()
    table = class_table(known.classes, classes, check_class_map(entry.get("class_map")))
    yield from collect("teacher: classes", _classes, known, classes, table)
    yield from collect("teacher: AP", _quality, known, entry, infos, at, classes, val, most)


def _infos(dataset: Any) -> list[Mapping[str, Any]]:
    return [base.get_data_info(i) for base in base_datasets(dataset) for i in range(len(base))]


def _images(known: Predictions, infos: Sequence[Any], at: Sequence[int | None]) -> Iterator[Finding]:
    lacking = [str(info["img_path"]) for info, place in zip(infos, at) if place is None]
    text = f"{len(infos) - len(lacking)} of {len(infos)} training images are in the file"
    empty = sum(place is not None and known.starts[place] == known.starts[place + 1] for place in at)
    if not lacking:
        yield Finding.ok("teacher: images", f"{text}, {empty} of them without boxes")
    elif known.lists_images or len(lacking) == len(infos):
        yield Finding.error(
            "teacher: images",
            f"{text}; missing {shortened(lacking, 2)}; in the file {shortened(filter(None, known.names), 2)}",
            "predict all of them: mmkd-predict continues where it stopped",
        )
    else:
        yield Finding.ok("teacher: images", f"{text}; it lists no images, so the others count as empty")


def _sizes(known: Predictions, infos: Sequence[Any], at: Sequence[int | None]) -> Iterator[Finding]:
    wrong = [
        f"{info['img_path']} has {info.get('width')}×{info.get('height')} px, in the file "
        f"{known.sizes[place]}"
        for info, place in zip(infos, at)
        if place is not None
        and known.sizes[place] is not None
        and info.get("width") is not None
        and known.sizes[place] != (info.get("width"), info.get("height"))
    ]
    if wrong:
        yield Finding.error(
            "teacher: image sizes",
            f"{len(wrong)} images differ in size from training: {wrong[0]}",
            "predict the same image files that the student trains on",
        )


def _classes(known: Predictions, classes: Sequence[str], table: Any) -> Iterator[Finding]:
    counts = np.bincount(known.labels_N, minlength=len(known.classes))
    others = [place for place, own in enumerate(table.tolist()) if own < 0 and counts[place]]
    said = ", ".join(
        f"{classes[own]} {counts[place]}" for place, own in enumerate(table.tolist()) if own >= 0
    )
    unknown = [name for place, name in enumerate(classes) if place not in table.tolist()]
    if unknown:
        yield Finding.error(
            "teacher: classes",
            f"not in the file: {shortened(unknown)}; in the file: {shortened(known.classes, 12)}",
            "map the names: teacher.class_map={'my name': 'its name'}",
        )
        return
    text = f"boxes: {said}"
    if others:
        left_out = sum(int(counts[place]) for place in others)
        text += (
            f"; ignored {left_out} of {len(known.labels_N)}, of classes that the student does not have: "
            + shortened(known.classes[place] for place in others)
        )
    yield Finding.ok("teacher: classes", text)


def _quality(
    known: Predictions,
    entry: Mapping[str, Any],
    infos: Sequence[Any],
    at: Sequence[int | None],
    classes: Sequence[str],
    val: Any,
    most: int,
) -> Iterator[Finding]:
    """Measure AP on images that the file contains, preferably those of the validation set."""
    pairs = [(info, place) for info, place in zip(infos, at) if place is not None]
    trained = {place: str(info["img_path"]) for info, place in pairs}
    where = "the training annotations, which the detector may have been trained on"
    if val is not None:
        scored = _infos(val)
        found = [(info, known.find(str(info["img_path"]), info.get("img_id"))) for info in scored]
        # A similar file name, or an id from another annotation file, may belong to a training image.
        there = [
            (info, place)
            for info, place in found
            if place is not None and trained.get(place, info["img_path"]) == info["img_path"]
        ]
        if len(there) >= _SHARE * len(scored):
            pairs, where = there, "the validation set"
            classes = class_names(val.metainfo) or classes
    pairs = [(info, place) for info, place in pairs if info["instances"]]
    if not pairs:
        raise NotExamined("the file has no images with annotations")
    class_map = check_class_map(entry.get("class_map"))
    table = class_table(known.classes, classes, class_map)
    pairs = [pairs[place] for place in spaced(range(len(pairs)), most)]
    said = [_detections(known, info, place, table, entry.get("min_score", 0.0)) for info, place in pairs]
    seen = judge(said, classes)
    yield compared(seen, len(pairs), None, f"of {where}")
    yield order_found(
        seen,
        len(pairs),
        classes,
        known.classes,
        class_map,
        "teacher.classes" if "classes" in entry else "the file",
    )


def _detections(known: Predictions, info: Any, place: int, table: Any, min_score: float) -> Detections:
    said = known.of(place)
    labels_M = table[torch.from_numpy(said.labels_M).long()]
    kept_M = (labels_M >= 0) & (torch.from_numpy(said.scores_M) >= min_score)
    width, height = said.size or (info.get("width", 0), info.get("height", 0))
    boxes_M4, scores_M = torch.from_numpy(said.boxes_M4)[kept_M], torch.from_numpy(said.scores_M)[kept_M]
    return Detections(height, width, boxes_M4, scores_M, labels_M[kept_M], info["instances"])


def examine_function(setup: TrainingSetup, number: int) -> Iterator[Finding]:
    """Run a function on a training batch.

    Args:
        setup: the training to check.
        number: the teacher's index.
    """
    model = setup.model().to(setup.device)
    model.check_class_names(setup.dataset("train").metainfo)
    teacher = single_teachers(model.teacher)[number]
    data = model.data_preprocessor(setup.batch(), True)
    samples = data["data_samples"]
    found = [one.cpu() for one in teacher.detect(data["inputs"], samples)]
    names = teacher.class_names
    scores_N = torch.cat([one.scores for one in found])
    counts = torch.bincount(torch.cat([one.labels for one in found]), minlength=teacher.spec.num_classes)
    seen = [_beside(one, sample) for one, sample in zip(found, samples)]
    confusion_KK, objects = match(seen, int(counts.numel()))
    share = confusion_KK.sum() / max(1, objects)
    classes = class_names(setup.dataset("train").metainfo) or names
    boxes = ", ".join(f"{name} {count}" for name, count in zip(classes, counts.tolist()))
    text = f"ran on {len(samples)} training images: {boxes}"
    if len(scores_N):
        text += f"; scores from {scores_N.min():.2f} to {scores_N.max():.2f}"
    text += f"; {share:.0%} of {objects} objects found with an IoU of 0.5"
    yield Finding.expect(
        objects < _OBJECTS or share >= _RECALL,
        "teacher: function",
        text,
        "boxes must be x1, y1, x2, y2 in pixels of the input image, which is uint8 H×W×3 RGB",
    )


def _beside(found: Any, sample: Any) -> Detections:
    truth = sample.gt_instances.cpu()
    boxes = get_box_tensor(truth.bboxes).tolist()
    instances = [{"bbox": box, "bbox_label": label} for box, label in zip(boxes, truth.labels.tolist())]
    height, width = sample.img_shape[:2]
    return Detections(height, width, found.bboxes, found.scores, found.labels, instances)
