"""The student's own losses with other boxes than the annotations as targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from mmengine.structures import InstanceData
from torch import nn

from mmkd.errors import UserError

# As in mmdet's own configs that ignore crowds.
_IGNORED_IOF = 0.5


def retargeted(sample: Any, targets: InstanceData, ignored: InstanceData) -> Any:
    """A copy of a data sample with different objects.

    Args:
        sample: mmdet's data sample.
        targets: ``bboxes`` (G, 4) in pixels of the input, and ``labels`` (G,).
        ignored: ``bboxes`` that count neither as objects nor as background.
    """
    copy = sample.new()
    copy.gt_instances, copy.ignored_instances = targets, ignored
    return copy


def check_other_targets(student: Any, path: str, ignores: bool) -> None:
    """Raise `UserError` unless the student can learn from boxes only.

    Args:
        student: the detector.
        path: the loss's place in the config.
        ignores: whether there are boxes to ignore.
    """
    if _learns_masks(student):
        raise UserError(
            f"{path}: the student learns masks, but the teacher's boxes have none.",
            expected="a box detector, or one whose masks come from a RoI head, which is then not trained",
            found=type(student).__name__,
            remedy="choose losses at the student's places, or feature losses (PKDLoss, …)",
        )
    if ignores and not list(_ignoring_assigners(student)):
        raise UserError(
            f"{path}: the student's assigner does not support ignored boxes.",
            expected="an assigner with ignore_iof_thr, like MaxIoUAssigner or ATSSAssigner",
            found=type(student).__name__,
            remedy="remove ignore_score: boxes below min_score then count as background",
        )


@contextmanager
def ready_for_boxes(student: Any, ignored: Sequence[Any]) -> Iterator[None]:
    """Disable the student's RoI mask heads, and make its assigners handle ignored boxes.

    Args:
        student: the detector.
        ignored: the boxes to ignore, per image.
    """
    with ExitStack() as stack:
        if any(len(one) for one in ignored):
            for assigner in _ignoring_assigners(student):
                stack.callback(setattr, assigner, "ignore_iof_thr", assigner.ignore_iof_thr)
                if assigner.ignore_iof_thr <= 0:
                    assigner.ignore_iof_thr = _IGNORED_IOF
        roi_head = getattr(student, "roi_head", None)
        if roi_head is not None and roi_head.with_mask:
            stack.callback(setattr, roi_head, "mask_head", roi_head.mask_head)
            roi_head.mask_head = None
        yield


def _learns_masks(student: Any) -> bool:
    """Whether it learns masks with heads that cannot be disabled."""
    heads = [getattr(student, name, None) for name in ("mask_head", "panoptic_head")]
    return any(head is not None for head in heads) or hasattr(
        getattr(student, "bbox_head", None), "loss_mask"
    )


def _ignoring_assigners(student: nn.Module) -> Iterator[Any]:
    for module in student.modules():
        for name in ("assigner", "bbox_assigner"):
            found = getattr(module, name, None)
            for assigner in found if isinstance(found, list) else [found]:
                if hasattr(assigner, "ignore_iof_thr"):
                    yield assigner
