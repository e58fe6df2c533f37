"""Outputs of a detector for a batch, as losses read them.

Shape suffixes: B images, L levels, A base priors per position, K class
channels, H and W feature-map size, C feature channels, N = all priors of the
batch (levels, then images, then rows, columns and base priors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from mmengine.dist import all_reduce
from torch import Tensor

Levels = tuple[Tensor, ...]
# Those in `OF_CONTEXT` are parts of `DistillContext`, not of the outputs.
Need = Literal[
    "feats",
    "cls_logits",
    "bbox_pred",
    "boxes",
    "extra",
    "padding",
    "labels",
    "label_weights",
    "quality_targets",
    "towers",
    "layers",
    "places",
    "detections",
    "own_losses",
]
OF_CONTEXT: frozenset[Need] = frozenset(
    {"padding", "labels", "label_weights", "quality_targets", "layers", "own_losses"}
)
Valid = Literal["image", "pad", "loss"]


@dataclass(frozen=True)
class HeadSpec:
    """The layout of a dense head's outputs.

    Attributes:
        num_classes: foreground classes.
        cls_channels: channels per prior (K); one more than ``num_classes`` if a softmax head has a background
            channel, which is last.
        use_sigmoid: whether class scores are sigmoids; otherwise a softmax over K.
        strides: per level, (x, y) in pixels.
        num_base_priors: per level, A; 0 where there is no dense head (a two-stage teacher).
        in_channels: per level, channels of the head's input features.
    """

    num_classes: int
    cls_channels: int
    use_sigmoid: bool
    strides: tuple[tuple[int, int], ...]
    num_base_priors: tuple[int, ...]
    in_channels: tuple[int, ...] = ()

    def select_levels(self, index: Sequence[int]) -> HeadSpec:
        """The layout of some of the levels, in this order."""
        return replace(
            self,
            strides=tuple(self.strides[i] for i in index),
            num_base_priors=tuple(self.num_base_priors[i] for i in index),
            in_channels=tuple(self.in_channels[i] for i in index) if self.in_channels else (),
        )

    def select_classes(self, count: int) -> HeadSpec:
        """The layout for this number of classes, with the background channel if there is one."""
        background = self.cls_channels - self.num_classes
        return replace(self, num_classes=count, cls_channels=count + background)


@dataclass(frozen=True)
class DenseOutputs:
    """Outputs of one detector for one batch.

    A part that no loss reads may be ``None``: the teacher computes only what is needed.

    Attributes:
        spec: the layout of the head.
        feats: the neck's output, per level B×C×H×W.
        cls_logits: per level B×(A·K)×H×W, before the sigmoid or softmax.
        bbox_pred: per level, the head's raw box output, B×(A·D)×H×W.
        boxes: per level, decoded boxes, B×(A·4)×H×W: x1, y1, x2, y2 in pixels of the input.
        extra: other outputs by name (``centerness``), per level.
        towers: by name (``"cls_convs"``, ``"reg_convs"``), the output of each tower layer per level.
        known_N: bool, False for priors missing in the teacher's cache; ``None`` if all are known.
        inner: what the teacher's later heads read, for places other than the dense maps.
        detections: the teacher's detections per image: ``bboxes`` (M, 4) in pixels of the input, ``labels``
            (M,), ``scores`` (M,) in [0, 1], and if available ``class_scores`` (M, K).
    """

    spec: HeadSpec
    feats: Levels
    cls_logits: Levels | None = None
    bbox_pred: Levels | None = None
    boxes: Levels | None = None
    extra: Mapping[str, Levels] = field(default_factory=dict)
    towers: Mapping[str, Sequence[Levels]] = field(default_factory=dict)
    known_N: Tensor | None = None
    inner: Any = None
    detections: Sequence[Any] | None = None

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Per level, (x, y) in pixels."""
        return self.spec.strides

    def levels(self) -> list[Tensor]:
        """All outputs: features, class logits, boxes, other outputs by name, and towers, each per level."""
        parts = [self.feats, self.cls_logits, self.bbox_pred, self.boxes, *self.extra.values()]
        parts += [layer for layers in self.towers.values() for layer in layers]
        return [level for part in parts if part is not None for level in part]

    def map(self, fn: Callable[[Tensor], Tensor]) -> DenseOutputs:
        """A copy with a function applied to each of the `levels`."""

        def mapped(part: Levels | None) -> Levels | None:
            return None if part is None else tuple(fn(level) for level in part)

        return DenseOutputs(
            spec=self.spec,
            feats=tuple(fn(level) for level in self.feats),
            cls_logits=mapped(self.cls_logits),
            bbox_pred=mapped(self.bbox_pred),
            boxes=mapped(self.boxes),
            extra={name: tuple(fn(level) for level in part) for name, part in self.extra.items()},
            towers={
                name: [tuple(fn(level) for level in layer) for layer in layers]
                for name, layers in self.towers.items()
            },
            known_N=self.known_N,
            inner=self.inner,
            detections=self.detections,
        )

    def select_levels(self, index: Sequence[int]) -> DenseOutputs:
        """Some of the levels, in this order."""

        def chosen(part: Levels | None) -> Levels | None:
            return None if part is None else tuple(part[i] for i in index)

        return replace(
            self,
            spec=self.spec.select_levels(index),
            feats=tuple(self.feats[i] for i in index) if self.feats else (),
            cls_logits=chosen(self.cls_logits),
            bbox_pred=chosen(self.bbox_pred),
            boxes=chosen(self.boxes),
            extra={name: tuple(part[i] for i in index) for name, part in self.extra.items()},
            towers={
                name: [tuple(layer[i] for i in index) for layer in layers]
                for name, layers in self.towers.items()
            },
        )

    def select_classes(self, index: Sequence[int]) -> DenseOutputs:
        """The logits of some of the classes, in this order, and of the background if there is one."""
        spec = self.spec.select_classes(len(index))
        if self.cls_logits is None:
            return replace(self, spec=spec)
        channels = [*index, *range(self.spec.num_classes, self.spec.cls_channels)]
        cls_logits = tuple(
            level.unflatten(1, (A, self.spec.cls_channels))[:, :, channels].flatten(1, 2)
            for level, A in zip(self.cls_logits, self.spec.num_base_priors)
        )
        return replace(self, spec=spec, cls_logits=cls_logits)

    def flat_cls_logits(self) -> Tensor:
        """Class logits as (N, K), in the order of mmdet's per-level targets."""
        return self._flat_cls_logits

    @cached_property
    def _flat_cls_logits(self) -> Tensor:
        return self._flat(self.cls_logits, "class logits")

    def flat_bbox_pred(self) -> Tensor:
        """The head's raw box output as (N, D)."""
        return self._flat(self.bbox_pred, "box predictions")

    def flat_boxes(self) -> Tensor:
        """Decoded boxes as (N, 4): x1, y1, x2, y2 in pixels of the input."""
        return self._flat(self.boxes, "boxes")

    def flat_extra(self, name: str) -> Tensor:
        """Another output as (N,), e.g. ``centerness`` before its sigmoid."""
        return self._flat(self.extra.get(name), name).squeeze(1)

    @property
    def rows_per_level(self) -> list[int]:
        """The number of priors on each level; the sum is N."""
        return [
            level.shape[0] * level.shape[2] * level.shape[3] * A
            for level, A in zip(self._some_levels, self.spec.num_base_priors)
        ]

    @cached_property
    def image_N(self) -> Tensor:  # noqa: N802
        """The index of each prior's image in the batch, (N,)."""
        images, device = len(self._some_levels[0]), self._some_levels[0].device
        return torch.cat(
            [
                torch.arange(images, device=device).repeat_interleave(rows // max(1, images))
                for rows in self.rows_per_level
            ]
        )

    @property
    def _some_levels(self) -> Levels:
        parts = (self.cls_logits, self.bbox_pred, self.boxes, *self.extra.values(), self.feats)
        levels = next((part for part in parts if part), None)
        assert levels is not None, "no output was requested"
        return levels

    def _flat(self, levels: Levels | None, what: str) -> Tensor:
        assert levels is not None, f"{what} were not requested"
        rows = [
            level.permute(0, 2, 3, 1).reshape(-1, level.shape[1] // A)
            for level, A in zip(levels, self.spec.num_base_priors)
        ]
        return torch.cat(rows)

    def top_scores(self) -> Tensor:
        """The highest foreground score of each prior, (N,), in [0, 1]."""
        return self._top_scores

    @cached_property
    def _top_scores(self) -> Tensor:
        return top_scores(self.flat_cls_logits(), self.spec)


@dataclass(frozen=True)
class RowOutputs:
    """Outputs of one detector at a place without dense maps, row by row: RoIs, queries, mask pixels.

    Losses on rows read it like `DenseOutputs`.

    Attributes:
        spec: the layout of the head; it has no levels.
        cls_logits_NK: class logits, before the sigmoid or softmax.
        boxes_N4: x1, y1, x2, y2 in pixels of the input.
        extra: other outputs by name, (N,), before their sigmoid.
        feats: the detector's features, per level B×C×H×W.
        image_N: the index of each row's image in the batch.
        known_N: bool, False for rows without an answer; ``None`` if all have one.
    """

    spec: HeadSpec
    cls_logits_NK: Tensor
    boxes_N4: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    feats: Levels = ()
    image_N: Tensor | None = None
    known_N: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> RowOutputs:
        """A copy with a function applied to logits, boxes and other outputs."""
        return replace(
            self,
            cls_logits_NK=fn(self.cls_logits_NK),
            boxes_N4=None if self.boxes_N4 is None else fn(self.boxes_N4),
            extra={name: fn(part) for name, part in self.extra.items()},
        )

    def take(self, index_N: Tensor) -> RowOutputs:
        """Some of the rows, in this order; without features."""
        image_N = None if self.image_N is None else self.image_N[index_N]
        known_N = None if self.known_N is None else self.known_N[index_N]
        return replace(self.map(lambda part: part[index_N]), image_N=image_N, known_N=known_N, feats=())

    def select_classes(self, index: Sequence[int]) -> RowOutputs:
        """The logits of some of the classes, in this order, and of the background if there is one."""
        channels = [*index, *range(self.spec.num_classes, self.spec.cls_channels)]
        return replace(
            self,
            spec=self.spec.select_classes(len(index)),
            cls_logits_NK=self.cls_logits_NK[:, channels],
        )

    @property
    def rows_per_level(self) -> list[int]:
        """All N rows are on one level."""
        return [len(self.cls_logits_NK)]

    def flat_cls_logits(self) -> Tensor:
        """Class logits as (N, K)."""
        return self.cls_logits_NK

    def flat_boxes(self) -> Tensor:
        """Boxes as (N, 4): x1, y1, x2, y2 in pixels of the input."""
        assert self.boxes_N4 is not None, "boxes were not requested"
        return self.boxes_N4

    def flat_extra(self, name: str) -> Tensor:
        """Another output as (N,), before its sigmoid."""
        return self.extra[name]

    def top_scores(self) -> Tensor:
        """The highest foreground score of each row, (N,), in [0, 1]."""
        return self._top_scores

    @cached_property
    def _top_scores(self) -> Tensor:
        return top_scores(self.cls_logits_NK, self.spec)


def top_scores(logits_NK: Tensor, spec: HeadSpec) -> Tensor:
    """The highest foreground score of each row of class logits, (N,), in [0, 1]."""
    logits_NK = logits_NK.float()
    if spec.use_sigmoid:
        return logits_NK.max(dim=1).values.sigmoid()
    return logits_NK.softmax(dim=1)[:, : spec.num_classes].max(dim=1).values


def by_place(
    values_N: Tensor, sizes: Sequence[tuple[int, int]], priors: Sequence[int], images: int
) -> list[Tensor]:
    """Values of all priors per level, as B×(H·W)×A×….

    Args:
        values_N: one per prior, (N, …).
        sizes: (H, W) per level.
        priors: A per level.
        images: B.
    """
    counts = [images * height * width * A for (height, width), A in zip(sizes, priors)]
    return [
        part.reshape(images, height * width, A, *values_N.shape[1:])
        for part, (height, width), A in zip(values_N.split(counts), sizes, priors)
    ]


@dataclass(frozen=True)
class DistillContext:
    """The parts of a batch that distillation losses need.

    Attributes:
        valid_N: bool, False for priors in the padding of their image, and for priors without a known answer
            of the teacher.
        num_images: number of images in this process's batch.
        data_samples: mmdet's data samples of the batch.
        labels_N: class index assigned by the student's own assigner, ``num_classes`` for background; only if
            a loss needs it.
        through: runs layers of the teacher on the student's tensor, with gradient (see
            `FrozenTeacher.through`). Losses that use it need ``"layers"``; otherwise layers may be left out.
        known_N: bool, False for priors without a known answer of the teacher; ``None`` if all are known.
        padded_N: bool, False for priors beyond their image's padded size, ``pad_shape``; only if a loss needs
            ``"padding"``.
        scored_N: bool, False for priors without a weight in the student's own classification loss: those
            beyond the padding, and anchors that its assigner ignores; only if a loss needs it.
        quality_sum: the sum of the centerness targets of the assigned priors; only if a loss needs it.
        crossed: runs the rest of the teacher's head on the student's features after a given number of tower
            layers, see `FrozenTeacher.crossed`; needs ``"layers"``.
        own_losses: takes other targets for each image, and what to ignore in it, both as `InstanceData` with
            ``bboxes`` and ``labels``; returns the sum of the student's own losses on them. Only if a loss
            needs it.
    """

    valid_N: Tensor
    num_images: int
    data_samples: Sequence[Any]
    labels_N: Tensor | None = None
    through: Callable[[Callable[[Any, Tensor], Tensor], Tensor], Tensor] | None = None
    crossed: Callable[[int, Mapping[str, Levels], frozenset[Need]], DenseOutputs] | None = None
    known_N: Tensor | None = None
    padded_N: Tensor | None = None
    scored_N: Tensor | None = None
    quality_sum: Tensor | None = None
    own_losses: Callable[[Sequence[Any], Sequence[Any]], Tensor] | None = None

    def counting(self, valid: Valid) -> DistillContext:
        """The same context with other priors in ``valid_N``.

        Args:
            valid: ``'image'``: unchanged; ``'pad'``: `padded_N`; ``'loss'``: `scored_N`. The last two without
                priors that are not known.
        """
        if valid == "image":
            return self
        valid_N = self.padded_N if valid == "pad" else self.scored_N
        assert valid_N is not None, f"the priors of valid={valid!r} were not requested"
        return replace(self, valid_N=valid_N if self.known_N is None else valid_N & self.known_N)

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes.

        Dividing by it makes the gradient that DistributedDataParallel
        averages equal to that of one process with the whole batch.
        """
        value = value.detach().float().clone()
        all_reduce(value, op="mean")
        return value
