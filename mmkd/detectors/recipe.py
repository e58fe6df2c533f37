"""Chooses losses that fit a student and a teacher, if only the teacher is given."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import GFLHead
from torch import nn

from mmkd.detectors.kinds import check_student
from mmkd.errors import UserError
from mmkd.heads import adapter_for, levels_by_stride
from mmkd.heads.towers import TOWERS, check_towers
from mmkd.losses.automatic import AUTO
from mmkd.outputs import PLACES, dense_layout, example_pixels, has_dense_head, student_layout
from mmkd.registry import MODELS, class_of
from mmkd.structures import HeadSpec
from mmkd.teachers import build_detector, plain_detector, teacher_model_and_checkpoint

_LAYER = 3  # of CrossKDLoss, by default


def recommended(
    student: Mapping[str, Any], teacher: Mapping[str, Any], classes: Sequence[str] | None
) -> dict[str, Any]:
    """The recommended losses for this pair: logits, boxes, quality, masks, features and inherited weights.

    Each weight sets itself.

    They are tested by building the model with all of them and, if that fails, with each one separately.

    Args:
        student: the model config of any detector.
        teacher: ``dict(config=…, checkpoint=…)``.
        classes: the data set's class names, if known.

    Returns:
        ``distill``, and where useful ``inherit`` and ``teacher``.

    Raises:
        UserError: nothing fits; says why the first loss does not fit, or what is wrong with the teacher.
    """
    plain = plain_detector(copy.deepcopy(student))
    check_student(class_of(plain), plain.type)
    with torch.random.fork_rng(devices=[]):
        own = MODELS.build(plain)
        own.eval()
        theirs, _ = build_detector(*teacher_model_and_checkpoint(teacher), head=None)
    teacher = {**teacher, **_levels(own, theirs)}
    dense = has_dense_head(own)

    def why_not(losses: Mapping[str, Any]) -> UserError | None:
        # With a dense head they also select the levels of its outputs, which requires losses on features
        # only.
        entry = teacher if not dense or losses.keys() == {"neck"} else {**teacher, "levels": None}
        try:
            _build(student, entry, losses).check_class_names({"classes": classes})
        except UserError as error:
            return error
        return None

    errors: list[UserError] = []

    def fitting(candidates: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        losses: dict[str, Any] = {name: choices[0] for name, choices in candidates.items()}
        if not why_not(losses):  # all at once, because building a model is slow
            return losses
        losses = {}
        for name, choices in candidates.items():
            for loss in choices:
                error = why_not({name: loss})
                if error is None:
                    losses[name] = loss
                    break
                errors.append(error)
        return losses

    crosses = dense and _crosses(own, theirs)
    losses = fitting(_candidates(own, theirs, crosses))
    if crosses and "cross" not in losses:
        losses = fitting(_candidates(own, theirs, False))
    if not losses:
        raise errors[0]
    parts = {part: part for part in _parts(own) if _shares(own, theirs, part)}
    if "cross" in losses:
        parts |= _predictors(own.bbox_head, theirs.bbox_head)
    of_maps = set(losses) if dense else set(losses) & {"neck"}
    found: dict[str, Any] = {"teacher": teacher} if "levels" in teacher and of_maps == {"neck"} else {}
    inherit = list(parts) if all(name == other for name, other in parts.items()) else parts
    return {**found, **({"inherit": inherit} if inherit else {}), "distill": losses}


def _candidates(own: Any, theirs: Any, crosses: bool) -> dict[str, list[dict[str, Any]]]:
    """By name, the variants of a loss in order of preference; the first that fits is used."""
    found: dict[str, list[dict[str, Any]]]
    if crosses:
        # The share was chosen for FCOS from ATSS, see docs/results-tables.md.
        share = {} if _same_head(own, theirs) else {"share": 2.0}
        found = {
            "cross": [_crossed(theirs, assigned) for assigned in (True, False)],
            "neck": [{"type": "PKDLoss", **share}],
        }
    else:
        found = dict(_of_outputs(own, theirs))
    return {name: [{**loss, "loss_weight": AUTO} for loss in choices] for name, choices in found.items()}


def _of_outputs(own: Any, theirs: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    if has_dense_head(own):
        yield from _of_dense_head(own, theirs)
    elif _both_at("queries", own, theirs):
        yield from _of_queries(own, theirs)
    else:
        if _both_at("rois", own, theirs):
            yield "cls", [{**_logits(PLACES["rois"].spec(own)), "region": "all"}]
            yield "box", [{"type": "BoxIoULoss"}]
        if _both_at("masks", own, theirs):
            yield "mask", [_masks("masks")]
        if _both_at("grid", own, theirs):
            yield "cls", [_logits(PLACES["grid"].spec(own))]
    if _both_at("prior_masks", own, theirs):
        yield "mask", [_masks("prior_masks")]
    yield "neck", [{"type": "PKDLoss"}]


def _of_queries(own: Any, theirs: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The teacher's queries if the student's decoder can read them, otherwise matched queries."""
    losses = {"cls": {**_logits(PLACES["queries"].spec(own)), "region": "teacher"}}
    if "boxes" in PLACES["queries"].offers(own):
        losses.update(box={"type": "BoxL1Loss"}, iou={"type": "BoxIoULoss"})
    shared = _both_at("shared_queries", own, theirs)
    for name, loss in losses.items():
        yield name, [*([{**loss, "place": "shared_queries"}] if shared else []), loss]
    if _both_at("query_masks", own, theirs):
        yield "mask", [_masks("query_masks")]


def _of_dense_head(own: Any, theirs: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    head, taught = own.bbox_head, getattr(theirs, "bbox_head", None)
    form = _logits(dense_layout(own))
    yield "cls", [form, {**form, "region": "teacher"}, {**form, "activation": "softmax", "region": "all"}]
    distributions = [isinstance(one, GFLHead) for one in (head, taught)]
    if all(distributions) and getattr(head, "reg_max", None) == getattr(taught, "reg_max", None):
        yield "box", [{"type": "LocalizationDistillationLoss"}, {"type": "BoxIoULoss"}]
    else:
        yield "box", [{"type": "BoxIoULoss"}]
    quality = _quality(own)
    if quality and quality == _quality(theirs):
        yield "quality", [{"type": "QualityLoss"}, {"type": "QualityLoss", "region": "teacher"}]


def _same_head(own: Any, theirs: Any) -> bool:
    return type(own.bbox_head) is type(theirs.bbox_head)


def _same_backbone(own: Any, theirs: Any) -> bool:
    """Whether the backbones are of one kind: ResNeXt is a ResNet, MobileNetV2 is not."""
    one, other = (type(getattr(model, "backbone", None)) for model in (own, theirs))
    return issubclass(one, other) or issubclass(other, one)


def _crosses(own: Any, theirs: Any) -> bool:
    """Whether head or backbone differ in kind and the teacher's head can take the student's features."""
    if not has_dense_head(theirs) or (_same_head(own, theirs) and _same_backbone(own, theirs)):
        return False
    heads = own.bbox_head, theirs.bbox_head
    try:
        for head in heads:
            check_towers(head, _LAYER, "")
    except UserError:
        return False
    shapes = [
        [next(getattr(head, name)[_LAYER - 1].parameters()).shape[0] for name in TOWERS] for head in heads
    ]
    return shapes[0] == shapes[1]


def _predictors(own: Any, theirs: Any) -> dict[str, str]:
    """The last layers that mean the same in both heads under other names: class logits and centerness.

    Crossed features fit the teacher's last layers, so the student's should begin as these.
    """
    found = {}
    for kind in ("_cls", "_centerness"):
        layers, taught = (
            {name: layer for name, layer in head.named_children() if name.endswith(kind)}
            for head in (own, theirs)
        )
        for name, other in zip(layers, taught):
            if name != other and _alike(layers[name], taught[other]):
                found[f"bbox_head.{name}"] = f"bbox_head.{other}"
    return found


def _alike(own: nn.Module, theirs: nn.Module) -> bool:
    """Whether both are convolutions with weights of the same shape."""
    both = isinstance(own, nn.Conv2d) and isinstance(theirs, nn.Conv2d)
    return both and own.weight.shape == theirs.weight.shape


def _crossed(theirs: Any, assigned: bool) -> dict[str, Any]:
    """CrossKD on all that the teacher's head gives, with or without the student's assigned objects."""
    spec = dense_layout(theirs)
    cls, quality = ({}, {}) if assigned else ({"normalizer": "batch"}, {"region": "teacher"})
    losses: dict[str, Any] = {
        "cls": {"type": "BCKDLoss", **cls} if spec.use_sigmoid else {**_logits(spec), "region": "all"},
        "box": {"type": "BoxIoULoss"},
    }
    if _quality(theirs):
        losses["quality"] = {"type": "QualityLoss", **quality}
    return {"type": "CrossKDLoss", "losses": losses}


def _masks(place: str) -> dict[str, Any]:
    """The loss on masks, whose rows are pixels."""
    return {"type": "DistillationLoss", "place": place, "region": "all"}


def _logits(spec: HeadSpec) -> dict[str, Any]:
    """The loss on class logits for the head's score type."""
    return {"type": "DistillationLoss", **({} if spec.use_sigmoid else {"activation": "softmax"})}


def _both_at(place: str, own: Any, theirs: Any) -> bool:
    return all(PLACES[place].lacks(model) is None for model in (own, theirs))


@torch.no_grad()
def _quality(model: Any) -> list[str]:
    """The names of a head's extra outputs."""
    try:
        adapter = adapter_for(model.bbox_head)
        feats = model.extract_feat(example_pixels(model, model.extract_feat))
        outputs = adapter.outputs(model.bbox_head, feats, model.bbox_head(feats), frozenset({"extra"}))
    except Exception:  # `_build` reports any error
        return []
    return list(outputs.extra)


def _build(student: Mapping[str, Any], teacher: Mapping[str, Any], losses: Mapping[str, Any]) -> Any:
    cfg = plain_detector(copy.deepcopy(student))
    cfg.update(student=cfg.type, teacher=dict(teacher), distill=copy.deepcopy(dict(losses)))
    cfg.type = "mmdet.KDDetector"
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        return MODELS.build(cfg)


@torch.no_grad()
def _levels(own: Any, theirs: Any) -> dict[str, Any]:
    """``levels`` for a teacher whose maps start at another stride, like those of two-stage detectors."""
    student, teacher = student_layout(own), student_layout(theirs)
    levels = levels_by_stride(student, teacher)
    return {"levels": levels} if levels and student.strides != teacher.strides else {}


def _parts(own: Any) -> list[str]:
    """The parts of a detector apart from its backbone; transformers also have parameters of their own."""
    modules = [name for name, _ in own.named_children() if name != "backbone"]
    return [*modules, *(name for name, _ in own.named_parameters(recurse=False))]


def _shares(own: Any, theirs: Any, part: str) -> bool:
    """Whether a part has parameters of the same names and shapes in both."""
    taught = dict(theirs.named_parameters())
    return any(
        name in taught and taught[name].shape == parameter.shape
        for name, parameter in own.named_parameters()
        if f"{name}.".startswith(f"{part}.")
    )
