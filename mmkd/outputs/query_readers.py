"""Reads a detector's queries from what its own code computes; one reader per family.

Shape suffixes: L layers or stages, B images, Q queries, K class channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.structures import HeadSpec, RowOutputs


@dataclass(frozen=True)
class Predictions:
    """The predictions of the queries for a batch.

    Attributes:
        logits_LBQK: class logits.
        boxes_LBQ4: x1, y1, x2, y2 in pixels of the input; ``None`` without boxes.
        labels_LBQ: the class that the detector's own assigner gave each query in its loss, the number of
            classes for background; ``None`` without a loss or if it is unknown.
        counts_LBQ: bool, False for queries that the detector leaves out of its loss and its detections.
        extra: further predictions by name, L×B×Q×….
        masks: per layer, mask logits B×Q×h×w; ``None`` without masks.
    """

    logits_LBQK: Tensor
    boxes_LBQ4: Tensor | None
    labels_LBQ: Tensor | None
    counts_LBQ: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Sequence[Tensor] | None = None

    def rows(self, parts: Sequence[int], spec: HeadSpec) -> RowOutputs:
        """Some of the layers as rows, in float32: layers, then images, then queries."""

        def flat(part: Tensor) -> Tensor:
            return part[list(parts)].flatten(0, 2).float()

        count, images, queries = len(parts), *self.counts_LBQ.shape[1:]
        image_B = torch.arange(images, device=self.logits_LBQK.device)
        return RowOutputs(
            spec=spec,
            cls_logits_NK=flat(self.logits_LBQK),
            boxes_N4=None if self.boxes_LBQ4 is None else flat(self.boxes_LBQ4),
            extra={name: flat(part) for name, part in self.extra.items()},
            image_N=image_B.repeat_interleave(queries).repeat(count),
            known_N=self.counts_LBQ[list(parts)].flatten(),
        )

    def of_image(self, part: int, image: int, spec: HeadSpec) -> RowOutputs:
        """The queries of one layer and image, (Q,), without gradient; ``extra["masks"]`` are their masks."""
        boxes = None if self.boxes_LBQ4 is None else self.boxes_LBQ4[part, image].detach().float()
        masks = {} if self.masks is None else {"masks": self.masks[part][image].detach().float()}
        return RowOutputs(spec, self.logits_LBQK[part, image].detach().float(), boxes, masks)


class QueryReader(ABC):
    """Reads the queries of a family of detectors. It has no state.

    Attributes:
        finds: how it finds objects, ``"boxes"`` or ``"masks"``; the teacher's must equal the student's.
    """

    finds = "boxes"

    def lacks(self, detector: Any) -> str | None:
        """Why the detector is not supported, as the end of a sentence; ``None`` if it is."""
        return None

    @abstractmethod
    def parts(self, detector: Any) -> int:
        """The number of layers or stages that predict."""

    @abstractmethod
    def spec(self, detector: Any) -> HeadSpec:
        """The layout of the class logits; it has no levels."""

    @abstractmethod
    def watch(self, detector: Any) -> AbstractContextManager[Any]:
        """Record the queries' predictions during the detector's own loss, without changing anything."""

    @abstractmethod
    def student(self, detector: Any, seen: Any, data_samples: Sequence[Any]) -> Predictions:
        """The student's predictions, from all layers.

        Args:
            detector: the student.
            seen: the record made by `watch`.
            data_samples: those of the batch.
        """

    @abstractmethod
    def teacher(self, detector: Any, inner: Any, data_samples: Sequence[Any]) -> Predictions:
        """The predictions of a detector in eval mode, from its last layer only.

        Args:
            detector: the teacher.
            inner: the result of `mmkd.outputs.features.encode`.
            data_samples: with ``img_shape`` and ``batch_input_shape``.
        """

    @abstractmethod
    def match(self, detector: Any, part: int, own: RowOutputs, taught: RowOutputs, meta: Any) -> Tensor:
        """Match an image's queries with the teacher's, using the student's own assigner.

        Args:
            detector: the student.
            part: the layer of the queries.
            own: the student's queries, (Q,), as `Predictions.of_image` gives them.
            taught: the teacher's, at least one; ``extra`` also has its masks.
            meta: the image's metainfo.

        Returns:
            (Q,): 0 for no partner, else the index of the teacher's query, counted from 1.
        """

    @abstractmethod
    def most(self, detector: Any) -> int | None:
        """The student's maximum number of detections per image, if configured."""


QUERY_READERS: dict[type, QueryReader] = {}

_Reader = TypeVar("_Reader", bound=type[QueryReader])


def register_query_reader(*detectors: type) -> Callable[[_Reader], _Reader]:
    """Class decorator: use this reader for these detectors and their subclasses."""

    def register(reader: _Reader) -> _Reader:
        for detector in detectors:
            QUERY_READERS[detector] = reader()
        return reader

    return register


def query_reader(detector: Any) -> QueryReader | None:
    """The reader of a detector's queries, found along the MRO of its class."""
    return next((QUERY_READERS[kind] for kind in type(detector).__mro__ if kind in QUERY_READERS), None)


def as_targets(taught: RowOutputs) -> InstanceData:
    """A teacher's queries as annotations: the best class and the box of each."""
    return InstanceData(labels=best_class(taught), bboxes=taught.boxes_N4)


def best_class(taught: RowOutputs) -> Tensor:
    """The class with the highest score, without background, (N,)."""
    return taught.cls_logits_NK[:, : taught.spec.num_classes].argmax(dim=1)


def assigned(counts_LBQ: Tensor, calls: Sequence[tuple[Any, ...]]) -> Tensor | None:
    """The labels that a head gave its classification loss, L×B×Q; ``None`` if they do not fit.

    Args:
        counts_LBQ: which queries the loss covers.
        calls: the arguments of each of its calls; the decoder's layers come first.
    """
    layers = []
    for counts_BQ, (_, labels, *_) in zip(counts_LBQ, calls):
        labels_N = labels[0] if isinstance(labels, tuple) else labels  # quality focal loss: labels, scores
        if labels_N.numel() != int(counts_BQ.sum()):
            return None
        layers.append(torch.full_like(counts_BQ, -1, dtype=torch.long).masked_scatter(counts_BQ, labels_N))
    return torch.stack(layers) if len(layers) == len(counts_LBQ) else None
