"""The teacher's queries, also run through the student: they need no matching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkd.errors import UserError
from mmkd.outputs.features import Recorded
from mmkd.outputs.place import Place, Reading, check_classes, register_place
from mmkd.outputs.query_readers import Predictions, query_reader
from mmkd.outputs.transformers import DDQReader, Encoded, TransformerReader, corners, decode
from mmkd.structures import DistillContext, HeadSpec, Levels, Need, RowOutputs


@dataclass(frozen=True)
class _Spec(HeadSpec):
    """Also what two decoders must share to read the same queries."""

    decoder: tuple[Any, ...] = ()


@register_place("shared_queries")
class SharedQueries(Place):
    """The teacher's queries through the student's decoder, on the student's own memory.

    Content and position of the teacher's queries (in two-stage transformers, those that it selected for the
    batch) go through the student's decoder and head in a separate pass, with gradient. Rows are the teacher's
    queries in each of the student's layers (``shared_queries.0`` for the first only); all are compared with
    the predictions of the teacher's last layer. They have no assigned classes: the teacher's score
    (``region='teacher'``) says which of them matter.

    Source: KD-DETR, Wang et al., CVPR 2024 (https://arxiv.org/abs/2211.08071): its specific sampling, without
    the general sampling, which adds random queries.
    """

    gives = frozenset[Need]({"cls_logits", "boxes"})

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        reader = query_reader(detector)
        if not isinstance(reader, TransformerReader):
            return "it is not a detection transformer"
        if isinstance(reader, DDQReader):
            return "its decoder selects queries based on its own earlier output"
        return reader.lacks(detector)

    def parts(self, detector: Any) -> int:
        """The number of decoder layers."""
        return _reader(detector).parts(detector)

    def spec(self, detector: Any) -> HeadSpec:
        """As `Place.spec`, with the kind and width of the decoder."""
        decoder = detector.decoder
        kind = (type(decoder).__name__, decoder.embed_dims, getattr(decoder, "query_dim", None))
        return _Spec(**vars(_reader(detector).spec(detector)), decoder=kind)

    @contextmanager
    def watch(self, detector: Any) -> Iterator[Recorded]:
        """As `Place.watch`: the student itself records its encoder's output for the batch."""
        yield detector.recorded

    def read(
        self, detector: Any, seen: Recorded, feats: Levels, data_samples: Sequence[Any], part: int | None
    ) -> Reading:
        """As `Place.read`; there are no rows yet: the student runs the teacher's queries in `pair`."""
        memory = next(iter(seen.memory))
        encoded = Encoded(tuple(next(iter(seen.feats))), data_samples, memory)
        nothing_N = memory["memory"].new_zeros(0, dtype=torch.bool)
        spec = _reader(detector).spec(detector)
        rows = RowOutputs(spec, memory["memory"].flatten()[:0].reshape(0, spec.cls_channels))
        context = DistillContext(nothing_N, len(data_samples), data_samples)
        return _SharedReading(rows, context, None, encoded, part)

    def answer(self, detector: Any, inner: Any, question: None, classes: Sequence[int] | None) -> RowOutputs:
        """The teacher's outputs, with its queries in ``extra``."""
        logits_LBQK, boxes_LBQ4, queries = decode(detector, inner)
        said = _predictions(logits_LBQK[-1:], boxes_LBQ4[-1:], inner.data_samples, queries)
        rows = said.rows([0], _reader(detector).spec(detector))
        return rows if classes is None else rows.select_classes(classes)

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse a teacher whose queries the student's decoder cannot read."""
        check_classes(student, teacher, "which their queries tell apart")
        assert isinstance(student, _Spec)
        assert isinstance(teacher, _Spec)
        if student.decoder != teacher.decoder:
            raise UserError(
                "The student's decoder cannot read the teacher's queries.",
                expected=_named(student.decoder) + " (the student's)",
                found=_named(teacher.decoder) + " (the teacher's)",
                remedy="use place='queries', which matches them, or a teacher with the student's "
                "architecture and width",
            )

    def pair(
        self, detector: Any, reading: Reading, said: RowOutputs
    ) -> tuple[RowOutputs, RowOutputs, DistillContext]:
        """As `Place.pair`: the student runs the teacher's queries."""
        assert isinstance(reading, _SharedReading)
        images = reading.context.num_images
        queries = {name: part_N.unflatten(0, (images, -1)) for name, part_N in said.extra.items()}
        logits_LBQK, boxes_LBQ4, _ = decode(detector, reading.encoded, queries)
        answered = _predictions(logits_LBQK, boxes_LBQ4, reading.context.data_samples)
        parts = range(len(logits_LBQK)) if reading.part is None else [reading.part]
        own = answered.rows(parts, reading.outputs.spec)
        taught = said.take(
            torch.arange(len(said.cls_logits_NK), device=logits_LBQK.device).repeat(len(parts))
        )
        assert own.known_N is not None
        return own, taught, DistillContext(own.known_N, images, reading.context.data_samples)


@dataclass(frozen=True)
class _SharedReading(Reading):
    """Also the inputs of the student's decoder."""

    encoded: Encoded
    part: int | None


def _reader(detector: Any) -> TransformerReader:
    reader = query_reader(detector)
    assert isinstance(reader, TransformerReader), "only called for detectors that have this place"
    return reader


def _predictions(
    logits_LBQK: Tensor, boxes_LBQ4: Tensor, data_samples: Sequence[Any], queries: Any = None
) -> Predictions:
    """The predictions of all queries, and the queries as the decoder receives them."""
    counts_LBQ = torch.ones_like(logits_LBQK[..., 0], dtype=torch.bool)
    extra = {name: value[None] for name, value in (queries or {}).items() if isinstance(value, Tensor)}
    return Predictions(logits_LBQK, corners(boxes_LBQ4, data_samples), None, counts_LBQ, extra)


def _named(decoder: tuple[Any, ...]) -> str:
    kind, width, coordinates = decoder
    return f"{kind} of width {width}" + (f", positions of {coordinates} coordinates" if coordinates else "")
