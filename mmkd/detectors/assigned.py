"""Check before the first step that a student's head computes its loss like mmdet's dense heads."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmkd.errors import UserError
from mmkd.heads import adapter_for
from mmkd.heads.observe import Observation, observe
from mmkd.structures import DenseOutputs, Need

_SIDE = 128


def check_loss(head: Any) -> None:
    """Raise `UserError` if a head's loss needs more than features and samples, like that of mmdet's LD."""
    try:
        inspect.signature(head.loss).bind((), [])
    except TypeError as error:
        raise UserError(
            f"The student's head {type(head).__name__} needs its own teacher to compute its loss.",
            expected="a head whose loss only takes features and data samples",
            found=f"{type(head).__name__}.loss{inspect.signature(head.loss)}",
            remedy="use the head it derives from (GFLHead for LDHead, PAAHead for LADHead) with an mmkd "
            "loss (LocalizationDistillationLoss for LD)",
        ) from error


def assigned_labels(head: Any, seen: Observation, student: DenseOutputs) -> torch.Tensor | None:
    """The class assigned to each prior, (N,), if the calls of the head's classification loss were recorded.

    Raises:
        UserError: they do not reveal the classes.
    """
    if seen.loss_cls_args is None:
        return None
    return adapter_for(head).assigned_labels(
        head, student.flat_cls_logits(), seen.loss_cls_args, student.cls_logits
    )


def scored_priors(head: Any, seen: Observation, student: DenseOutputs) -> torch.Tensor:
    """Which priors have a weight in the head's classification loss, (N,) bool.

    Raises:
        UserError: the calls do not reveal the weights.
    """
    assert seen.loss_cls_args is not None
    return adapter_for(head).scored_priors(
        head, student.flat_cls_logits(), seen.loss_cls_args, student.cls_logits
    )


def check_quality(head: Any) -> None:
    """Raise `UserError` if a head has no centerness targets."""
    if not isinstance(getattr(head, "loss_centerness", None), torch.nn.Module):
        raise UserError(
            f"{type(head).__name__} has no centerness targets.",
            expected="a head with a loss_centerness (FCOSHead, ATSSHead, …) for normalizer='centerness'",
            found=type(head).__name__,
            remedy="choose another normalizer",
        )


def check_labels(head: Any, asks: frozenset[Need] = frozenset({"labels"})) -> None:
    """Raise `UserError` if a head does not reveal the class assigned to each prior, or its weight.

    A copy of the head computes its loss for one made-up image. If that fails here, because it needs a GPU or
    the training's state, the first step decides.

    Args:
        head: the student's head.
        asks: ``labels`` checks the classes, ``label_weights`` the weights.
    """
    adapter = adapter_for(head)
    spec = adapter.spec(head)
    trial = copy.deepcopy(head).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            feats = tuple(
                torch.randn(2, channels, -(-_SIDE // y), -(-_SIDE // x))
                for channels, (x, y) in zip(spec.in_channels, spec.strides, strict=True)
            )
            with observe(trial, labels=adapter.label_losses) as seen:
                trial.loss(feats, [_sample(), _sample()])
        student = adapter.outputs(trial, feats, seen.raw[0], frozenset({"cls_logits"}))
        if "labels" in asks:
            assigned_labels(trial, seen, student)
        if "label_weights" in asks:
            scored_priors(trial, seen, student)
    except UserError:
        raise
    except Exception:
        return


def _sample() -> Any:
    """An image with one object."""
    shape = (_SIDE, _SIDE)
    sample = DetDataSample(
        metainfo={
            "img_shape": shape,
            "ori_shape": shape,
            "pad_shape": shape,
            "batch_input_shape": shape,
            "scale_factor": (1.0, 1.0),
        }
    )
    box_14 = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * _SIDE
    sample.gt_instances = InstanceData(bboxes=box_14, labels=torch.zeros(1, dtype=torch.long))
    sample.ignored_instances = InstanceData(bboxes=box_14[:0], labels=torch.zeros(0, dtype=torch.long))
    return sample
