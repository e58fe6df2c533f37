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

    One of your own subclasses it under ``@mmkd.registry.TEACHERS.register_module()`` and gives `spec` and
    `answer`; all else has a default. ``teacher=dict(type='MyTeacher', …)`` chooses it: the other keys are
    arguments of its constructor, but for ``cache``, ``levels`` and ``class_map``, which every teacher has. An
    argument ``needs`` is given the parts of the outputs that the losses read, ``student`` the student.

    It is no `nn.Module` of the student: in none of its parameters, modules, state, optimizer, EMA or
    checkpoints. A deep copy of the student shares it.

    Attributes:
        spec: the layout of what it says, before ``levels`` and ``class_map`` choose from it.
        gives: the parts of the outputs that it can give. A loss that reads others is refused.
        needs: the parts that the losses read; set when it is built.
        class_names: of its class logits, in their order; ``None`` if they are those of the data set.
        checkpoint: weights that a student may inherit; path or URL.
        facts: what the log and W&B say of it, with ``checkpoint`` and ``parameters_computed``.
        of_classes: its dense class logits are of the data set's classes, not of objects and background as an
            RPN's.
    """

    spec: HeadSpec
    gives: frozenset[Need] = frozenset({"feats", "cls_logits", "bbox_pred", "boxes", "extra"})
    needs: frozenset[Need] = frozenset()
    class_names: tuple[str, ...] | None = None
    checkpoint: str | None = None
    of_classes: bool = True

    @property
    def head(self) -> Any:
        """Its dense head, for losses that look inside of it."""
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
        """Its outputs for a batch.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            data_samples: the batch's, with ``img_shape``.

        Returns:
            The parts in `needs`, on the device of the input. Without features the sizes of the maps are those
            of the other parts.
        """

    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """Its detections in each image.

        Args:
            inputs_BCHW: the student's normalised and padded input.
            data_samples: the batch's, with their metadata.

        Returns:
            For each image `mmkd.outputs.detections`: ``bboxes`` in pixels of the input, ``scores``, and
            ``labels`` in the order of the student's classes once these are found.

        Raises:
            UserError: it finds none.
        """
        raise UserError(
            f"{type(self).__name__} predicts no boxes.",
            expected="a trained detector, predictions in a file, or a CallableTeacher",
            found=type(self).__name__,
            remedy="choose another teacher for losses on boxes (TeacherBoxesLoss)",
        )

    def complete(self, outputs: DenseOutputs) -> DenseOutputs:
        """Add to an `answer` what follows from it and need not be stored in a cache."""
        return outputs

    def ask(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Callable[[], DenseOutputs]:
        """Put the question of `answer`; what comes back gives the completed answer when called.

        Returns:
            A function whose result is float32 and without gradient.
        """

        @torch.no_grad()
        def answer() -> DenseOutputs:
            outputs = self.complete(self.answer(inputs_BCHW, data_samples))
            return outputs.map(lambda level: level.detach().float())

        return answer

    def for_example(self) -> DenseOutputs | None:
        """Its outputs for an example image, if available before training; needed to average teachers."""
        return None

    def compared_levels(self, student: Selectable) -> Selectable:
        """The student's layout or outputs in the levels that are compared with its own."""
        return student

    def find_classes(self, dataset_meta: Any) -> None:  # noqa: B027
        """Give class logits in the order of a data set's classes from now on.

        Args:
            dataset_meta: the data set's metainfo; a list of them for one of several parts.

        Raises:
            UserError: it does not know one of them.
        """

    def serve(self, place: Place, student: HeadSpec, reads: frozenset[Need]) -> HeadSpec:
        """Prepare to give outputs at a place other than the dense maps.

        Args:
            place: where the student is read.
            student: its layout there.
            reads: what a loss reads there.

        Returns:
            The teacher's there.

        Raises:
            UserError: the teacher predicts nothing there, or not what is read.
        """
        raise self._has_no_layers()

    def at(
        self, place: Place, answer: DenseOutputs, question: Any, classes: Sequence[int] | None = None
    ) -> RowOutputs:
        """Its outputs at a place.

        Args:
            place: one that it serves.
            answer: what it said of the batch before.
            question: of the student's `Reading`.
            classes: for each of the student's classes its index among the teacher's; ``None`` if they are
                the same in the same order.

        Returns:
            Rows in float32, without gradient.
        """
        raise self._has_no_layers()

    def through(self, layers: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """Run layers of its detector on a tensor of the student's, see `FrozenTeacher.through`."""
        raise self._has_no_layers()

    def crossed(self, layer: int, towers: Mapping[str, Levels], needs: frozenset[Need]) -> DenseOutputs:
        """Go on with the student's features in its head, see `FrozenTeacher.crossed`."""
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
        """What it computes in there."""
        return torch.float32

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:  # noqa: B027
        """Follow what `nn.Module._apply` applies to the student to another device."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class TeacherAround:
    """A `Teacher` that wraps another and delegates to it by default.

    Args:
        inner: the other.
    """

    def __init__(self, inner: Teacher) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # not there yet, or a protocol of Python's
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self
