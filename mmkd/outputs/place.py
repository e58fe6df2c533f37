"""A place at which a detector predicts, beside the maps of a dense head: RoIs, queries, masks.

A place tells how the student is watched there while it computes its own loss, and how a teacher is asked
about the same rows. Losses on rows then read both as they read dense maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from mmkd.errors import UserError
from mmkd.structures import DistillContext, HeadSpec, Levels, Need, RowOutputs

# The maps of a dense head: that of a one-stage detector, or the RPN of a two-stage one.
DENSE = ("dense", "rpn")


@dataclass(frozen=True)
class Reading:
    """A student's outputs at a place.

    Attributes:
        outputs: its rows.
        context: the batch, with the assigned labels of these rows.
        question: what the teacher needs to know to speak of the same rows.
    """

    outputs: RowOutputs
    context: DistillContext
    question: Any


class Place(ABC):
    """A kind of place. It has no state: the detector is always an argument.

    Attributes:
        gives: what a loss may read of the outputs here, and of the context.
        sampled: the annotated objects decide which rows there are.
        of_detections: any teacher that finds boxes answers here, by its `Teacher.detect`, which `answer` is
            then given for ``inner``.
    """

    gives: frozenset[Need] = frozenset({"cls_logits", "boxes", "labels"})
    sampled = False
    of_detections = False

    @property
    def source(self) -> str:
        """Places with one source have one reading and one answer, and differ in how they pair them."""
        return type(self).__name__

    @abstractmethod
    def lacks(self, detector: Any) -> str | None:
        """Why a detector does not predict here, as the end of a sentence; ``None`` if it does."""

    @abstractmethod
    def parts(self, detector: Any) -> int:
        """The number of stages or layers that predict here; each can be named, as ``rois.0``."""

    def offers(self, detector: Any) -> frozenset[Need]:
        """What a loss may read of this detector here."""
        return self.gives

    @abstractmethod
    def spec(self, detector: Any) -> HeadSpec:
        """The classes here, in which teacher and student have to agree; it has no levels."""

    def of_rows(self, spec: HeadSpec) -> HeadSpec:
        """The layout of a row's logits, for these classes."""
        return spec

    @abstractmethod
    def watch(self, detector: Any) -> AbstractContextManager[Any]:
        """Record what the student computes here during its loss, by hooks that change nothing."""

    @abstractmethod
    def read(
        self, detector: Any, seen: Any, feats: Levels, data_samples: Sequence[Any], part: int | None
    ) -> Reading:
        """Make rows of what was recorded.

        Args:
            detector: the student.
            seen: what `watch` gave.
            feats: the student's features.
            data_samples: mmdet's data samples of the batch.
            part: of one stage or layer alone; of all if ``None``.
        """

    @abstractmethod
    def answer(self, detector: Any, inner: Any, question: Any, classes: Sequence[int] | None) -> RowOutputs:
        """The teacher's outputs for the same rows.

        Args:
            detector: the teacher.
            inner: its features, as `mmkd.outputs.features.encode` gave them.
            question: that of the `Reading`.
            classes: for each of the student's classes its index among the teacher's; ``None`` if they are
                the same in the same order.

        Returns:
            Rows with the student's classes.
        """

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:  # noqa: B027
        """Raise `UserError` if these two cannot be compared here, whatever the loss reads."""

    def pair(
        self, detector: Any, reading: Reading, said: RowOutputs
    ) -> tuple[RowOutputs, RowOutputs, DistillContext]:
        """Student's and teacher's rows, one to one.

        Args:
            detector: the student.
            reading: what it said.
            said: what the teacher said, with the student's classes.

        Returns:
            Both, and the context, where rows without a partner are not valid.
        """
        return reading.outputs, said, reading.context


def check_classes(student: HeadSpec, teacher: HeadSpec, use: str) -> None:
    """Raise `UserError` unless two have as many classes.

    Args:
        student: its layout.
        teacher: likewise.
        use: what for, as the end of a sentence.
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
    """Class decorator: ``place='<name>'`` of a loss means this."""

    def register(place: _Place) -> _Place:
        PLACES[name] = place()
        return place

    return register


def default_place(detector: Any) -> str:
    """Where a loss on rows reads a detector if its config does not say: at the last that it has."""
    own = (name for name, place in PLACES.items() if not place.of_detections)
    return next((name for name in own if PLACES[name].lacks(detector) is None), "dense")


def find_place(name: str, detector: Any, path: str) -> tuple[Place, int | None]:
    """The place that a loss names, and which of its parts.

    Args:
        name: like ``rois`` or ``rois.0``.
        detector: the student.
        path: where the loss stands in the config, for messages.

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
    """Take from the losses' configs the place that each of them names.

    Args:
        losses: name → config.

    Returns:
        The configs without ``place``, and from the losses that name one to its name.

    Raises:
        UserError: a place is no string.
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
