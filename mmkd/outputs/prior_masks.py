"""`prior_masks`: masks that one-stage detectors predict from points, anchors or grid cells.

Shape suffixes: R priors with an object, h and w size of a mask, N pixels of all masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mmkd.errors import UserError
from mmkd.outputs.grid import check_grids
from mmkd.outputs.mask_queries import on_image
from mmkd.outputs.mask_readers import MaskReader, PriorSpec, mask_reader
from mmkd.outputs.place import Place, Reading, register_place
from mmkd.structures import DistillContext, HeadSpec, Levels, Need, RowOutputs


@dataclass(frozen=True)
class _Question:
    """The priors, and the mask sizes of each of the student's groups."""

    priors: Any
    sizes: tuple[tuple[int, ...], ...]


@register_place("prior_masks")
class PriorMasks(Place):
    """The masks of CondInst, BoxInst, YOLACT, RTMDet-Ins, SOLO and SOLOv2; a row is a pixel of a mask.

    It uses the points, anchors or grid cells that the student's head assigns an object. The teacher predicts
    masks for the same ones; masks of another size are resized bilinearly. A pixel's logit says whether it
    belongs to the object. Pixels in the padding, and pixels outside YOLACT's crop box, are not valid. Classes
    are not compared.
    """

    gives = frozenset[Need]({"cls_logits"})
    sampled = True

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        return None if mask_reader(detector) else "it predicts no masks from points, anchors or cells"

    def parts(self, detector: Any) -> int:
        """Always one."""
        return 1

    def spec(self, detector: Any) -> PriorSpec:
        """The layout of the priors, with one class: the object."""
        return _reader(detector).spec(detector)

    def of_rows(self, spec: HeadSpec) -> HeadSpec:
        """A pixel has one logit: whether it belongs to the object."""
        return HeadSpec(1, 1, True, (), ())

    def watch(self, detector: Any) -> AbstractContextManager[Any]:
        """As `Place.watch`."""
        return _reader(detector).watch(detector)

    def read(
        self, detector: Any, seen: Any, feats: Levels, data_samples: Sequence[Any], part: int | None
    ) -> Reading:
        """As `Place.read`."""
        priors, groups = _reader(detector).student(detector, seen)
        image_N, valid_N, logits_N = [], [], [feats[0].flatten()[:0].float()]
        for group in groups:
            valid_Rhw = on_image(group.logits_Rhw, data_samples)[group.image_R]
            if group.inside_Rhw is not None:
                valid_Rhw = valid_Rhw & group.inside_Rhw
            valid_N.append(valid_Rhw.flatten())
            image_N.append(group.image_R.repeat_interleave(group.logits_Rhw.shape[1:].numel()))
            logits_N.append(group.logits_Rhw.flatten().float())
        spec = self.of_rows(self.spec(detector))
        rows = RowOutputs(spec, torch.cat(logits_N)[:, None], image_N=torch.cat(image_N))
        context = DistillContext(torch.cat(valid_N), len(data_samples), data_samples)
        sizes = tuple(tuple(group.logits_Rhw.shape[1:]) for group in groups)
        return Reading(rows, context, _Question(priors, sizes))

    def answer(
        self, detector: Any, inner: Any, question: _Question, classes: Sequence[int] | None
    ) -> RowOutputs:
        """As `Place.answer`."""
        logits_N = [inner[0].flatten()[:0].float()]
        for masks_Rhw, size in zip(
            _reader(detector).teacher(detector, inner, question.priors), question.sizes
        ):
            if len(masks_Rhw) and masks_Rhw.shape[1:] != size:
                masks_Rhw = F.interpolate(masks_Rhw[None], size, mode="bilinear", align_corners=False)[0]
            logits_N.append(masks_Rhw.flatten().float())
        return RowOutputs(self.of_rows(self.spec(detector)), torch.cat(logits_N)[:, None])

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse a teacher whose masks belong to other priors."""
        assert isinstance(student, PriorSpec)
        assert isinstance(teacher, PriorSpec)
        if student.kind != teacher.kind:
            raise UserError(
                "Teacher and student predict masks from different kinds of priors.",
                expected=f"{student.kind} (the student's)",
                found=f"{teacher.kind} (the teacher's)",
                remedy="use a teacher of the student's kind, or feature losses (PKDLoss, …)",
            )
        check_grids(student.grids, teacher.grids)


def _reader(detector: Any) -> MaskReader:
    reader = mask_reader(detector)
    assert reader is not None, "only called for detectors that have this place"
    return reader
