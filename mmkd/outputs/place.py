"""A place where a detector predicts, besides a dense head's maps: RoIs, queries, masks.

A place defines how to watch the student while it computes its own loss, and how to ask a teacher about the
same rows. Losses on rows then read both like dense maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from mmkd.errors import UserError
from mmkd.structures import DistillContext, HeadSpec, Levels, Need, RowOutputs

# The maps of a dense head: a one-stage detector's, or a two-stage detector's RPN.
DENSE = ("dense", "rpn")


@dataclass(frozen=True)
class Reading:
    """A student's outputs at a place.

    Attributes:
        outputs: its rows.
        context: the batch, with the assigned labels of these rows.
        question: what the teacher needs to predict for the same rows.
    """

    outputs: RowOutputs
    context: DistillContext
    question: Any


class Place(ABC):
    """A kind of place. It has no state: the detector is always an argument.

    Attributes:
        gives: what a loss may read here, from the outputs and from the context.
        sampled: whether the annotated objects decide which rows exist.
        of_detections: whether any teacher that finds boxes works here; `answer` then receives its
            `Teacher.detect` output as ``inner``.
    """

    gives: frozenset[Need] = frozenset({"cls_logits", "boxes", "labels"})
    sampled = False
    of_detections = False

    @property
    def source(self) -> str:
        """Places with the same source share one reading and one answer, and differ only in how they pair."""
        return type(self).__name__

    @abstractmethod
    def lacks(self, detector: Any) -> str | None:
        """Why a detector has no such place, as the end of a sentence; ``None`` if it has."""

    @abstractmethod
    def parts(self, detector: Any) -> int:
        """The number of stages or layers that predict here; each can be named, as ``rois.0``."""

    def offers(self, detector: Any) -> frozenset[Need]:
        """What a loss may read from this detector here."""
        return self.gives

    @abstractmethod
    def spec(self, detector: Any) -> HeadSpec:
        """The class layout here, in which teacher and student must agree; it has no levels."""

    def of_rows(self, spec: HeadSpec) -> HeadSpec:
        """The layout of a row's logits, for these classes."""
        return spec

    @abstractmethod
    def watch(self, detector: Any) -> AbstractContextManager[Any]:
        """Record what the student computes here during its loss, with hooks that change nothing."""

    @abstractmethod
    def read(
        self, detector: Any, seen: Any, feats: Levels, data_samples: Sequence[Any], part: int | None
    ) -> Reading:
        """Turn the record into rows.

        Args:
            detector: the student.
            seen: the record made by `watch`.
            feats: the student's features.
            data_samples: mmdet's data samples of the batch.
            part: the stage or layer to read; ``None`` for all.
        """

    @abstractmethod
    def answer(self, detector: Any, inner: Any, question: Any, classes: Sequence[int] | None) -> RowOutputs:
        """The teacher's outputs for the same rows.

        Args:
            detector: the teacher.
            inner: its features, from `mmkd.outputs.features.encode`.
            question: the question of the `Reading`.
            classes: for each of the student's classes, its index in the teacher; ``None`` if classes and
                order are the same.

        Returns:
            Rows with the student's classes.
        """

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:  # noqa: B027
        """Raise `UserError` if these two cannot be compared here by any loss."""

    def pair(
        self, detector: Any, reading: Reading, said: RowOutputs
    ) -> tuple[RowOutputs, RowOutputs, DistillContext]:
        """Pair the student's and the teacher's rows one to one.

        Args:
            detector: the student.
            reading: the student's outputs.
            said: the teacher's outputs, with the student's classes.

        Returns:
            Both, and the context, in which rows without a partner are not valid.
        """
        return reading.outputs, said, reading.context


def check_classes(student: HeadSpec, teacher: HeadSpec, use: str) -> None:
    """Raise `UserError` unless both have the same number of classes.

    Args:
        student: the student's layout.
        teacher: the teacher's layout.
        use: the purpose, as the end of a sentence.
    """
    if student.num_classes != teacher.num_classes:
        raise UserError(
            f"Teacher and student have different classes, {use}.",
            expected=f"{student.num_classes} classes (the student's)",
            found=f"{teacher.num_classes} classes (the teacher's)",
            remedy="use a teacher trained on the student's classes, or one whose checkpoint lists its "
            "classes",
        )


PLACES: dict[str, Place] = {}

_Place = TypeVar("_Place", bound=type[Place])


def register_place(name: str) -> Callable[[_Place], _Place]:
    """Class decorator: register a place as ``place='<name>'`` for losses."""

    def register(place: _Place) -> _Place:
        PLACES[name] = place()
        return place

    return register


def default_place(detector: Any) -> str:
    """The place that losses on rows read by default: the last one that the detector has."""
    own = (name for name, place in PLACES.items() if not place.of_detections)
    return next((name for name in own if PLACES[name].lacks(detector) is None), "dense")


def find_place(name: str, detector: Any, path: str) -> tuple[Place, int | None]:
    """The place that a loss names, and the index of its part.

    Args:
        name: for example ``rois`` or ``rois.0``.
        detector: the student.
        path: the loss's place in the config, for messages.

    Raises:
        UserError: there is no such place, or the detector predicts nothing there.
    """
    kind, _, part = name.partition(".")
    served = [place for place in PLACES if PLACES[place].lacks(detector) is None]
    if kind not in PLACES:
        raise UserError(
            f"{path}: unknown place.",
            expected=f"place, one of: {', '.join([*DENSE, *PLACES])}",
            found=repr(name),
            remedy="correct or remove it",
        )
    place = PLACES[kind]
    why = place.lacks(detector)
    if why is not None:
        raise UserError(
            f"{path}: the student has no predictions at place={kind!r}: {why}.",
            expected=f"one of: {', '.join(served) or 'dense'}",
            found=type(detector).__name__,
            remedy="choose another place, or remove it",
        )
    if not part:
        return place, None
    count = place.parts(detector)
    if not part.isdigit() or int(part) >= count:
        raise UserError(
            f"{path}: the student has no such stage of place={kind!r}.",
            expected=f"{kind}, or {kind}.0 to {kind}.{count - 1}",
            found=repr(name),
            remedy="correct the number",
        )
    return place, int(part)


def split_places(losses: Any) -> tuple[Any, dict[str, str]]:
    """Extract ``place`` from the losses' configs.

    Args:
        losses: name → config.

    Returns:
        The configs without ``place``, and the places by loss name.

    Raises:
        UserError: a place is not a string.
    """
    if not isinstance(losses, Mapping):
        return losses, {}
    plain, places = {}, {}
    for name, cfg in losses.items():
        if isinstance(cfg, Mapping) and cfg.get("place") is not None:
            if not isinstance(cfg["place"], str):
                raise UserError(
                    f"distill.{name}: invalid place.",
                    expected=f"one of: {', '.join([*DENSE, *PLACES])}",
                    found=repr(cfg["place"]),
                    remedy="correct or remove it",
                )
            places[name] = cfg["place"]
        plain[name] = (
            {key: value for key, value in cfg.items() if key != "place"} if isinstance(cfg, Mapping) else cfg
        )
    return plain, places
