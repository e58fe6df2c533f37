"""Queries: a set of predictions per image, without an order shared by student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from mmkd.errors import UserError
from mmkd.outputs.place import Place, Reading, check_classes, register_place
from mmkd.outputs.query_readers import Predictions, QueryReader, query_reader
from mmkd.structures import DistillContext, HeadSpec, Levels, Need, RowOutputs


@dataclass(frozen=True)
class QueryQuestion:
    """What a teacher is told about a student's queries.

    Attributes:
        data_samples: with only ``img_shape`` and ``batch_input_shape``.
        parts: the student's layers.
    """

    data_samples: Sequence[Any]
    parts: Sequence[int]


@dataclass(frozen=True)
class QueryReading(Reading):
    """Also all predictions of the student's queries, used for matching.

    Attributes:
        said: the predictions.
        matches: a teacher's outputs, and for each row its partner there; one entry per teacher so far.
    """

    said: Predictions
    matches: list[tuple[RowOutputs, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class QuerySpec(HeadSpec):
    """Also how the queries find an object, see `QueryReader`."""

    finds: str = "boxes"


@register_place("queries")
class Queries(Place):
    """The queries of a decoder, each matched with one of the teacher's.

    Rows are the student's queries of each layer (``queries.0`` for the first layer only), without denoising
    and auxiliary queries. The student's own assigner, with its own costs, matches each image's queries with
    the predictions of the teacher's last layer as if these were annotations. Only the teacher's
    highest-scoring queries take part: as many as the student's maximum number of detections
    (``test_cfg.max_per_img``), and no more than it has queries. Queries without a partner are not valid.

    Source: matching with the teacher's predictions: Chang et al., ICCV 2023
    (https://arxiv.org/abs/2211.10156), which also matches background queries.
    """

    def lacks(self, detector: Any) -> str | None:
        """As `Place.lacks`."""
        reader = query_reader(detector)
        return "it has no queries" if reader is None else reader.lacks(detector)

    def parts(self, detector: Any) -> int:
        """The layers of the decoder, or the stages."""
        return _reader(detector).parts(detector)

    def spec(self, detector: Any) -> HeadSpec:
        """As `Place.spec`."""
        reader = _reader(detector)
        return QuerySpec(**vars(reader.spec(detector)), finds=reader.finds)

    def offers(self, detector: Any) -> frozenset[Need]:
        """As `Place.offers`; mask queries have no boxes."""
        boxes: frozenset[Need] = frozenset({"boxes"})
        return self.gives if _reader(detector).finds == "boxes" else self.gives - boxes

    def watch(self, detector: Any) -> AbstractContextManager[Any]:
        """As `Place.watch`."""
        return _reader(detector).watch(detector)

    def read(
        self, detector: Any, seen: Any, feats: Levels, data_samples: Sequence[Any], part: int | None
    ) -> Reading:
        """As `Place.read`; the labels come from the student's own matching with the annotations."""
        said = _reader(detector).student(detector, seen, data_samples)
        parts = range(len(said.logits_LBQK)) if part is None else [part]
        rows = said.rows(parts, self.spec(detector))
        assert rows.known_N is not None
        labels_N = None if said.labels_LBQ is None else said.labels_LBQ[list(parts)].flatten()
        context = DistillContext(rows.known_N, len(data_samples), data_samples, labels_N=labels_N)
        question = QueryQuestion([_shapes(sample) for sample in data_samples], parts)
        return QueryReading(rows, context, question, said)

    def answer(
        self, detector: Any, inner: Any, question: QueryQuestion, classes: Sequence[int] | None
    ) -> RowOutputs:
        """The valid predictions of the last layer, image by image."""
        said = _reader(detector).teacher(detector, inner, question.data_samples)
        rows = said.rows([0], self.spec(detector))
        assert rows.known_N is not None
        rows = rows.take(rows.known_N.nonzero().squeeze(1))
        return rows if classes is None else rows.select_classes(classes)

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Refuse a teacher whose queries cannot be matched by class and by box or mask."""
        check_classes(student, teacher, "by which their queries are matched")
        assert isinstance(student, QuerySpec)
        assert isinstance(teacher, QuerySpec)
        if student.finds != teacher.finds:
            raise UserError(
                "Teacher and student queries represent different things, so they cannot be matched.",
                expected=f"{student.finds} (the student's)",
                found=f"{teacher.finds} (the teacher's)",
                remedy="use a teacher of the student's kind, or feature losses (PKDLoss, …)",
            )

    def pair(
        self, detector: Any, reading: Reading, said: RowOutputs
    ) -> tuple[RowOutputs, RowOutputs, DistillContext]:
        """As `Place.pair`: the teacher's queries in the student's order."""
        partner_N = self.match(detector, reading, said)
        if not len(said.cls_logits_NK):  # no row can stand in for a missing partner
            said = reading.outputs.map(Tensor.detach)
        valid_N = reading.context.valid_N & (partner_N >= 0)
        taught = said.take(partner_N.clamp(min=0))
        return reading.outputs, taught, replace(reading.context, valid_N=valid_N)

    @torch.no_grad()
    def match(self, detector: Any, reading: Reading, said: RowOutputs) -> Tensor:
        """For each of the student's rows, the teacher's matching row, −1 for none, (N,)."""
        assert isinstance(reading, QueryReading)
        assert said.image_N is not None
        for known, partner_N in reading.matches:
            if known is said:
                return partner_N
        reader, counts_N = _reader(detector), reading.context.valid_N
        images, parts = reading.context.num_images, reading.question.parts
        queries = len(counts_N) // (len(parts) * images)
        most = min(reader.most(detector) or queries, queries)
        partner_N = torch.full_like(counts_N, -1, dtype=torch.long)
        with torch.autocast(partner_N.device.type, enabled=False):
            for image, sample in enumerate(reading.context.data_samples):
                theirs = (said.image_N == image).nonzero().squeeze(1)
                scores = said.top_scores()[theirs]
                theirs = theirs[scores.topk(min(most, len(theirs))).indices.sort().values]
                for layer, part in enumerate(parts):
                    start = (layer * images + image) * queries
                    ours = counts_N[start : start + queries].nonzero().squeeze(1)
                    if not len(theirs) or not len(ours):
                        continue
                    own = reading.said.of_image(part, image, reading.outputs.spec).take(ours)
                    found = reader.match(detector, part, own, said.take(theirs), sample.metainfo)
                    partner_N[start + ours[found > 0]] = theirs[found[found > 0] - 1]
        reading.matches.append((said, partner_N))
        return partner_N


def _reader(detector: Any) -> QueryReader:
    reader = query_reader(detector)
    assert reader is not None, "only called for detectors that have this place"
    return reader


def _shapes(sample: Any) -> Any:
    """The information about an image that a teacher may have."""
    shape = getattr(sample, "batch_input_shape", sample.img_shape)
    return DetDataSample(metainfo={"img_shape": sample.img_shape, "batch_input_shape": shape})
