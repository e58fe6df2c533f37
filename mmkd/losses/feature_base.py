"""Base class of losses on the neck's feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import UserError, naming
from mmkd.functional.checks import check_choice
from mmkd.losses.base import DistillLoss
from mmkd.structures import DenseOutputs, HeadSpec, Need

Align = Literal["auto", "conv", "none"]


class FeatureLoss(DistillLoss):
    """A loss on the necks' feature maps, level by level.

    A subclass reads them through `pairs`. Where the widths differ, a 1×1 convolution maps the student's map
    to the teacher's width; it trains with the student but is not in its checkpoints. Where the sizes differ,
    the teacher's map is resized to the student's (bilinear, corners not aligned). Like the published methods,
    these losses use the whole map, including the padding of the images.

    Args:
        loss_weight: factor ≥ 0.
        levels: indices of the levels to use, 0 for the finest; all by default.
        align: ``'auto'``: a convolution on levels whose widths differ; ``'conv'``: one on every level;
            ``'none'``: no convolution, the widths must agree.

    Raises:
        UserError: an option is out of its range; in `check`, the levels or widths of the pair do not match.
    """

    needs: frozenset[Need] = frozenset({"feats"})
    # In the recipe better than 0.5 on playing cards, as good on blood cells (configs/compare/*_shares.yaml).
    default_share = 4.0
    # Subclasses that handle other widths themselves add choices.
    valid_aligns: tuple[str, ...] = get_args(Align)

    def __init__(
        self, loss_weight: float = 1.0, levels: Sequence[int] | None = None, align: str = "auto"
    ) -> None:
        super().__init__(loss_weight)
        with naming(self):
            check_choice("align", align, self.valid_aligns)
            if levels is not None and not _are_indices(levels):
                raise ValueError(f"levels must be distinct indices ≥ 0 like [0, 1], found {levels!r}")
        self.levels = None if levels is None else tuple(levels)
        self.align = align
        self.aligns = nn.ModuleList()

    def chosen(self, count: int) -> tuple[int, ...]:
        """The indices of the levels to use, out of ``count``."""
        return tuple(range(count)) if self.levels is None else self.levels

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse pairs whose levels, or with ``align='none'`` whose widths, do not match."""
        name, own, taught = type(self).__name__, student.in_channels, teacher.in_channels
        if len(own) != len(taught):
            raise UserError(
                f"{name}: the student has {len(own)} feature levels and the teacher {len(taught)}; "
                "give both necks the same num_outs"
            )
        beyond = [level for level in self.chosen(len(own)) if level >= len(own)]
        if beyond:
            raise UserError(f"{name}: levels must be among {list(range(len(own)))}, found {beyond}")
        differ = [level for level in self.chosen(len(own)) if own[level] != taught[level]]
        if self.align == "none" and differ:
            raise UserError(
                f"{name}: align='none' needs features of equal width, found {own[differ[0]]} (student) and "
                f"{taught[differ[0]]} (teacher) on level {differ[0]}; set align='auto'"
            )

    def adapt(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Make the convolutions, in the order of the chosen levels."""
        self.aligns = nn.ModuleList(
            nn.Conv2d(own, taught, 1)
            if self.align == "conv" or (self.align == "auto" and own != taught)
            else nn.Identity()
            for own, taught in (
                (student.in_channels[level], teacher.in_channels[level])
                for level in self.chosen(len(student.in_channels))
            )
        )

    def pairs(self, student: DenseOutputs, teacher: DenseOutputs) -> list[tuple[Tensor, Tensor]]:
        """The maps of the chosen levels, B×C×H×W each, in float32 or float64, also under autocast.

        Args:
            student: outputs with features; each passes through its convolution, if it has one.
            teacher: outputs with features; resized if need be, and detached.

        Returns:
            Per level the student's and the teacher's map, of the same size; also of the same width, unless a
            subclass allows other widths.
        """
        levels = self.chosen(len(student.feats))
        assert len(self.aligns) == len(levels), "call adapt() first"
        with torch.autocast(student.feats[0].device.type, enabled=False):
            return [
                _pair(align, student.feats[level], teacher.feats[level])
                for align, level in zip(self.aligns, levels)
            ]


def _pair(align: nn.Module, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(align, nn.Conv2d):
        student = align(student.to(align.weight.dtype))
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    teacher = teacher.detach().to(student.dtype)
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
    return student, teacher


def _are_indices(levels: object) -> bool:
    return (
        isinstance(levels, (list, tuple))
        and len(levels) > 0
        and all(isinstance(level, int) and not isinstance(level, bool) and level >= 0 for level in levels)
        and len(set(levels)) == len(levels)
    )
