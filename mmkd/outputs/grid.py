"""`grid`: the classes of SOLO, SOLOv2 and similar heads, on a grid of S×S cells per level.

Shape suffixes: N cells of the batch (levels, then images, then rows and columns), K class channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import SOLOHead
from torch import Tensor, nn

from mmkd.errors import UserError
from mmkd.heads.calls import Calls
from mmkd.outputs.place import Place, Reading, register_place
from mmkd.outputs.roi_heads import hooked, plain_maps
from mmkd.structures import DistillContext, HeadSpec, Levels, RowOutputs


@dataclass(frozen=True)
class GridSpec(HeadSpec):
    """Also the number of cells along a side, per level."""

    grids: tuple[int, ...] = ()


class Cells:
    """A SOLO head's outputs for its cells in one forward, and in its loss if it was computed.

    Attributes:
        levels: class logits, per level B×K×S×S; in eval mode the head returns only local maxima.
        scorings: the arguments of its classification loss.
    """

    def __init__(self) -> None:
        self.levels: Calls[Tensor] = Calls()
        self.scorings: Calls[tuple[Any, ...]] = Calls()

    def logits(self, parts: Sequence[int]) -> Tensor:
        """The logits of some of the levels, (N, K)."""
        levels = list(self.levels)
        return torch.cat([levels[part].permute(0, 2, 3, 1).flatten(0, 2) for part in parts])

    def labels(self, head: Any) -> tuple[Tensor, ...]:
        """Per level, the class assigned to each cell; the number of classes means background.

        Raises:
            UserError: the loss received different cells, or not one class per cell.
        """
        logits_NK, labels_N, *_ = list(self.scorings)[-1]
        every_NK = self.logits(range(len(self.levels)))
        if labels_N.shape != every_NK.shape[:1] or not torch.equal(logits_NK, every_NK):
            raise UserError(
                f"Cannot determine the class that {type(head).__name__} assigned to each cell.",
                expected=f"the logits of all {len(every_NK)} cells and as many class indices as the "
                "arguments of its loss_cls, level by level",
                found=f"{tuple(logits_NK.shape)} and {tuple(labels_N.shape)}",
                remedy="use a head of mmdet, or feature losses (PKDLoss, …)",
            )
        sizes = [level[:, 0].numel() for level in self.levels]
        return labels_N.split(sizes)


@contextmanager
def watch_cells(head: Any) -> Iterator[Cells]:
    """Record a SOLO head's outputs for its cells."""
    seen = Cells()

    def on_logits(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        seen.levels.add(output)

    def on_loss(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.scorings.add(args)

    with hooked(
        head.conv_cls.register_forward_hook(on_logits), head.loss_cls.register_forward_pre_hook(on_loss)
    ):
        yield seen


@register_place("grid")
class Grid(Place):
    """Heads of the SOLO and SOLOv2 families; a row is a cell of a level's grid.

    Grids cover the padded batch, so cells of equal index correspond. The assigned classes are those that the
    student's head passes to its own loss. A cell is valid if its center is inside the image.
    """

    gives = frozenset({"cls_logits", "labels", "label_weights", "padding"})

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        head = getattr(detector, "mask_head", None)
        return None if isinstance(head, SOLOHead) else "it has no grid of cells like SOLO"

    def parts(self, detector: Any) -> int:
        """The number of levels."""
        return len(detector.mask_head.num_grids)

    def spec(self, detector: Any) -> GridSpec:
        """As `Place.spec`."""
        head = detector.mask_head
        sigmoid = getattr(head.loss_cls, "use_sigmoid", True)
        return GridSpec(head.num_classes, head.cls_out_channels, sigmoid, (), (), (), tuple(head.num_grids))

    @contextmanager
    def watch(self, detector: Any) -> Iterator[Cells]:
        """As `Place.watch`."""
        with watch_cells(detector.mask_head) as seen:
            yield seen

    def read(
        self, detector: Any, seen: Cells, feats: Levels, data_samples: Sequence[Any], part: int | None
    ) -> Reading:
        """As `Place.read`; levels are concatenated."""
        head = detector.mask_head
        parts = range(len(head.num_grids)) if part is None else [part]
        labels = seen.labels(head)
        grids = [head.num_grids[level] for level in parts]
        logits_NK = seen.logits(parts)
        image_B = torch.arange(len(data_samples), device=logits_NK.device)
        image_N = torch.cat([image_B.repeat_interleave(grid**2) for grid in grids])
        rows = RowOutputs(
            spec=self.spec(detector),
            cls_logits_NK=logits_NK,
            image_N=image_N,
        )
        context = DistillContext(
            valid_N=_within(grids, data_samples, "img_shape", logits_NK),
            num_images=len(data_samples),
            data_samples=data_samples,
            labels_N=torch.cat([labels[level] for level in parts]),
            padded_N=_within(grids, data_samples, "pad_shape", logits_NK),
            scored_N=torch.ones_like(image_N, dtype=torch.bool),
        )
        return Reading(rows, context, tuple(parts))

    def answer(
        self, detector: Any, inner: Any, question: Sequence[int], classes: Sequence[int] | None
    ) -> RowOutputs:
        """As `Place.answer`."""
        with watch_cells(detector.mask_head) as seen:
            detector.mask_head(plain_maps(inner))
        rows = RowOutputs(self.spec(detector), seen.logits(question))
        return rows if classes is None else rows.select_classes(classes)

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse a teacher with different grids."""
        assert isinstance(student, GridSpec)
        assert isinstance(teacher, GridSpec)
        check_grids(student.grids, teacher.grids)


def check_grids(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Raise `UserError` unless both heads have the same cells."""
    if student != teacher:
        raise UserError(
            "Teacher and student have different grids, so their cells do not correspond.",
            expected=f"num_grids={list(student)} (the student's)",
            found=f"num_grids={list(teacher)} (the teacher's)",
            remedy="use a teacher with the student's grids, or feature losses (PKDLoss, …)",
        )


def _within(grids: Sequence[int], data_samples: Sequence[Any], name: str, like: Tensor) -> Tensor:
    """Whether each cell's center is inside the sizes that the samples give under a name, (N,) bool."""
    within = []
    for grid in grids:
        center_S = (torch.arange(grid, device=like.device) + 0.5) / grid
        for sample in data_samples:
            whole = getattr(sample, "batch_input_shape", sample.img_shape)
            height, width = getattr(sample, name, sample.img_shape)[:2]
            on_row_S, on_column_S = center_S * whole[0] < height, center_S * whole[1] < width
            within.append((on_row_S[:, None] & on_column_S).flatten())
    return torch.cat(within)
