"""The interface of all teachers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmkd.errors import UserError
from mmkd.outputs import Place
from mmkd.structures import DenseOutputs, HeadSpec, Levels, Need, RowOutputs

Selectable = TypeVar("Selectable", HeadSpec, DenseOutputs)


class Teacher(ABC):
    """A source of outputs that a student learns from.

    To write your own, subclass it under ``@mmkd.registry.TEACHERS.register_module()`` and implement `spec`
    and `answer`; everything else has a default. ``teacher=dict(type='MyTeacher', …)`` selects it: the other
    keys are constructor arguments, except ``cache``, ``levels``, ``class_map`` and ``every``, which every
    teacher supports. A constructor argument ``needs`` receives the parts of the outputs that the losses read,
    ``student`` the student.

    A teacher is not an `nn.Module` of the student: it is not in the student's parameters, modules, state,
    optimizer, EMA or checkpoints. A deep copy of the student shares it.

    Attributes:
        spec: the layout of its outputs, before ``levels`` and ``class_map`` are applied.
        gives: the parts of the outputs that it supports. A loss that reads others is refused.
        needs: the parts that the losses read; set when it is built.
        class_names: the names of its class logits, in order; ``None`` if they match the data set.
        checkpoint: weights that a student may inherit; path or URL.
        facts: what the log and W&B report, with ``checkpoint`` and ``parameters_computed``.
        of_classes: whether its dense class logits are for the data set's classes, unlike an RPN's, which only
            tell objects from background.
    """

    spec: HeadSpec
    gives: frozenset[Need] = frozenset({"feats", "cls_logits", "bbox_pred", "boxes", "extra"})
    needs: frozenset[Need] = frozenset()
    class_names: tuple[str, ...] | None = None
    checkpoint: str | None = None
    of_classes: bool = True

    @property
    def head(self) -> Any:
        """The teacher's dense head, for losses that access its layers."""
        return None

    @property
    def identity(self) -> Sequence[Any] | None:
        """What its outputs depend on besides the image, JSON-serialisable; ``None`` forbids a cache."""
        return None

    @cached_property
    def facts(self) -> Mapping[str, Any]:  # noqa: D102  (see the class)
        classes = None if self.class_names is None else list(self.class_names)
        return {
            "detector": type(self).__name__,
            "config": "inline",
            "checkpoint": self.checkpoint,
            "parameters_computed": 0,
            "classes": classes,
        }

    @abstractmethod
    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        """The outputs for a batch.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            data_samples: those of the batch, with ``img_shape``.

        Returns:
            The parts in `needs`, on the device of the input. Without features, the other parts give the map
            sizes.
        """

    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """The detections in each image.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            data_samples: those of the batch, with their metadata.

        Returns:
            For each image `mmkd.outputs.detections`: ``bboxes`` in pixels of the input, ``scores``, and
            ``labels`` in the order of the student's classes, once `find_classes` was called.

        Raises:
            UserError: the teacher does not detect.
        """
        raise UserError(
            f"{type(self).__name__} predicts no boxes.",
            expected="a trained detector, predictions in a file, or a CallableTeacher",
            found=type(self).__name__,
            remedy="choose another teacher for losses on boxes (TeacherBoxesLoss)",
        )

    def complete(self, outputs: DenseOutputs) -> DenseOutputs:
        """Add parts to an `answer` that can be derived from it and need not be cached."""
        return outputs

    def ask(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Callable[[], DenseOutputs]:
        """Start computing a batch; call the result to get the completed answer.

        Returns:
            A function whose result is float32 and without gradient; it runs outside the student's autocast.
        """

        @torch.no_grad()
        def answer() -> DenseOutputs:
            with torch.autocast(inputs_BCHW.device.type, enabled=False):
                outputs = self.complete(self.answer(inputs_BCHW, data_samples))
            return outputs.map(lambda level: level.detach().float())

        return answer

    def for_example(self) -> DenseOutputs | None:
        """The outputs for an example image, if available before training; needed to average teachers."""
        return None

    def compared_levels(self, student: Selectable) -> Selectable:
        """The student's layout or outputs, reduced to the levels compared with the teacher's."""
        return student

    def find_classes(self, dataset_meta: Any) -> None:  # noqa: B027
        """Give class logits in the order of a data set's classes from now on.

        Args:
            dataset_meta: the data set's metainfo; a list of them for a data set of several parts.

        Raises:
            UserError: the teacher lacks one of the classes.
        """

    def serve(self, place: Place, student: HeadSpec, reads: frozenset[Need]) -> HeadSpec:
        """Prepare to give outputs at a place other than the dense maps.

        Args:
            place: the place where the student is read.
            student: the student's layout there.
            reads: the parts that a loss reads there.

        Returns:
            The teacher's layout there.

        Raises:
            UserError: the teacher does not predict there, or lacks a part that is read.
        """
        raise self._has_no_layers()

    def at(
        self, place: Place, answer: DenseOutputs, question: Any, classes: Sequence[int] | None = None
    ) -> RowOutputs:
        """The outputs at a place.

        Args:
            place: a place that it serves.
            answer: its answer for the batch.
            question: the question of the student's `Reading`.
            classes: for each of the student's classes, its index in the teacher; ``None`` if classes and
                order are the same.

        Returns:
            Rows in float32, without gradient.
        """
        raise self._has_no_layers()

    def through(self, layers: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """Run layers of the teacher on the student's tensor, see `FrozenTeacher.through`."""
        raise self._has_no_layers()

    def crossed(self, layer: int, towers: Mapping[str, Levels], needs: frozenset[Need]) -> DenseOutputs:
        """Continue in the teacher's head with the student's features, see `FrozenTeacher.crossed`."""
        raise self._has_no_layers()

    def _has_no_layers(self) -> UserError:
        return UserError(
            f"{type(self).__name__} has no layers that a loss could use.",
            expected="a trained detector as teacher, or losses on features or outputs",
            found="a loss that needs the teacher's layers",
            remedy="use another teacher for that loss: teacher=dict(a=dict(config=…), b=…), "
            "distill=dict(cross=dict(type='CrossKDLoss', teacher='a'))",
        )

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype used on a device."""
        return torch.float32

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:  # noqa: B027
        """Follow the student to another device."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class TeacherAround:
    """A `Teacher` that wraps another and delegates to it by default.

    Args:
        inner: the wrapped teacher.
    """

    def __init__(self, inner: Teacher) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # not set yet, or a Python protocol
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self
