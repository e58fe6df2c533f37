"""`FittedTeacher`: selects the teacher's levels and classes that match the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmengine.logging import print_log
from torch import Tensor

from mmkd.datasets import class_names
from mmkd.errors import UserError
from mmkd.heads import check_heads
from mmkd.outputs import Place, dense_layout, of_classes, student_layout
from mmkd.structures import DenseOutputs, HeadSpec, Levels, Need, RowOutputs
from mmkd.teachers.protocol import Selectable, Teacher, TeacherAround


class FittedTeacher(TeacherAround):
    """Maps a teacher's levels and classes to the student's, as configured.

    Args:
        inner: the teacher.
        entry: ``levels``, for each level of the student the index of the teacher's, ``None`` for no match;
            ``class_map``, from the student's class names to the teacher's.
        needs: the parts of `DenseOutputs` that the losses read.
        student: the student; its layout is compared with the teacher's.

    Raises:
        UserError: an option is wrong, or teacher and student do not match.
    """

    def __init__(
        self, inner: Teacher, entry: Mapping[str, Any], needs: frozenset[Need], student: Any
    ) -> None:
        super().__init__(inner)
        self.levels = check_levels(entry.get("levels"))
        self.class_map = check_class_map(entry.get("class_map"))
        self.class_index: list[int] | None = None
        maps = inner.needs - {"detections"}
        self._features_alone = not maps - {"feats"}
        self._detects = "detections" in needs
        self._dataset_meta: Any = None
        own, whole = student_layout(student) if self._features_alone else dense_layout(student), inner.spec
        self._taught = None if self.levels is None else [x for x in self.levels if x is not None]
        if self.levels is not None:
            self._check_within(self.levels, len(own.strides), len(whole.strides), needs)
        own = self.compared_levels(own)
        # By name, once the data set's class names are known; see `find_classes`.
        fewer = "cls_logits" in inner.needs and own.num_classes < whole.num_classes
        self.awaits_classes = fewer and inner.class_names is not None
        self._num_classes = own.num_classes if self.awaits_classes else whole.num_classes
        if maps:
            check_heads(own, self.spec, maps, pairs_priors=False)

    def _check_within(
        self, levels: Sequence[int | None], own: int, whole: int, needs: frozenset[Need]
    ) -> None:
        if self._features_alone and len(levels) > own:
            raise UserError(
                f"teacher.levels must have at most {own} entries, the student's number of levels, "
                f"found {list(levels)}"
            )
        if not all(level is None or 0 <= level < whole for level in levels):
            raise UserError(f"teacher.levels must be from 0 to {whole - 1}, found {list(levels)}")
        if "boxes" in needs:
            raise UserError("teacher.levels cannot be combined with losses on decoded boxes yet")

    @property
    def spec(self) -> HeadSpec:
        """The layout of the teacher's outputs, with levels and classes as the student's."""
        spec = self.inner.spec if self._taught is None else self.inner.spec.select_levels(self._taught)
        return spec.select_classes(self._num_classes) if self.inner.of_classes else spec

    def compared_levels(self, student: Selectable) -> Selectable:
        """The student's layout or outputs, reduced to the compared levels.

        All levels; but with ``levels`` and only feature losses, the first ones up to the length of the list,
        without those that have no match.
        """
        if self.levels is None or not self._features_alone:
            return student
        return student.select_levels([own for own, taught in enumerate(self.levels) if taught is not None])

    def ask(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> Callable[[], DenseOutputs]:
        """As `Teacher.ask`."""
        answer = self.inner.ask(inputs_BCHW, data_samples)
        return lambda: self._selected(answer())

    def answer(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> DenseOutputs:
        """As `Teacher.answer`."""
        return self._selected(self.inner.answer(inputs_BCHW, data_samples))

    def for_example(self) -> DenseOutputs | None:
        """As `Teacher.for_example`."""
        outputs = self.inner.for_example()
        return None if outputs is None else self._selected(outputs)

    def crossed(self, layer: int, towers: Mapping[str, Levels], needs: frozenset[Need]) -> DenseOutputs:
        """As `FrozenTeacher.crossed`."""
        return self._selected(self.inner.crossed(layer, towers, needs))

    def serve(self, place: Place, student: HeadSpec, reads: frozenset[Need]) -> HeadSpec:
        """As `Teacher.serve`; with the student's classes if the teacher has classes of these names."""
        spec = self.inner.serve(place, student, reads)
        if self.inner.class_names is not None and student.num_classes < spec.num_classes:
            self.awaits_classes, self._num_classes = True, student.num_classes
            spec = spec.select_classes(student.num_classes)
        return spec

    def at(
        self, place: Place, answer: DenseOutputs, question: Any, classes: Sequence[int] | None = None
    ) -> RowOutputs:
        """As `Teacher.at`, with the student's classes."""
        return self.inner.at(place, answer, question, self.class_index)

    def detect(self, inputs_BCHW: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """As `Teacher.detect`."""
        return self._of_classes(self.inner.detect(inputs_BCHW, data_samples))

    @property
    def detected_classes(self) -> list[int] | None:
        """The index of each of the student's classes among those of boxes; ``None`` if they are the same."""
        return self._index_of_names(self._dataset_meta) if self.class_index is None else self.class_index

    def _of_classes(self, found: Sequence[Any]) -> list[Any]:
        index = self.detected_classes
        return list(found) if index is None else [of_classes(one, index) for one in found]

    def _selected(self, outputs: DenseOutputs) -> DenseOutputs:
        if outputs.detections is not None:
            outputs = replace(outputs, detections=self._of_classes(outputs.detections))
        if self._taught is not None:
            outputs = outputs.select_levels(self._taught)
        if self.class_index is not None and self.inner.of_classes:
            outputs = outputs.select_classes(self.class_index)
        if outputs.feats or not outputs.levels():
            return outputs
        maps = outputs.cls_logits or outputs.bbox_pred or outputs.boxes or next(iter(outputs.extra.values()))
        return replace(outputs, feats=tuple(level[:, :0].to("meta") for level in maps))  # only sizes are read

    def find_classes(self, dataset_meta: Any) -> None:
        """Reorder the class logits to a data set's classes.

        Args:
            dataset_meta: the data set's metainfo; a list of them for a data set of several parts.

        Raises:
            UserError: the teacher lacks one of the classes, or the student's head has a different number.
        """
        self._dataset_meta = dataset_meta
        if "cls_logits" not in self.inner.needs and not self._detects:  # features and boxes have no class
            return
        own, taught = class_names(dataset_meta), self.inner.class_names
        if own is None or taught is None:
            if self.awaits_classes or (taught is not None and not self.inner.spec.strides):
                raise UserError(
                    "Cannot match the teacher's classes: the data set has no class names.",
                    expected="class names in the data set's metainfo",
                    found="none",
                    remedy="set metainfo=dict(classes=…)",
                )
            return
        index = self._index_of_names(dataset_meta)
        if index is None:
            return
        if self.awaits_classes and len(own) != self._num_classes:
            raise UserError(
                "The number of classes differs between the student's head and its data set.",
                expected=f"model.bbox_head.num_classes={len(own)}, for {_shortened(own)}",
                found=str(self._num_classes),
                remedy="correct model.bbox_head.num_classes",
            )
        self.class_index = index
        self._num_classes, self.awaits_classes = len(own), False
        found = zip(own, index, (taught[place] for place in index))
        mapping = ", ".join(f"{name} ← {index} {theirs}" for name, index, theirs in found)
        print_log(f"teacher classes matched by name: {mapping}", "current")

    def _index_of_names(self, dataset_meta: Any) -> list[int] | None:
        """The index of each of a data set's classes among the teacher's; ``None`` if they are the same."""
        own, taught = class_names(dataset_meta), self.inner.class_names
        if own is None or taught is None:
            return None
        renamed = [self.class_map.get(name, name) for name in own]
        if renamed == list(taught):
            return None
        strange = [name for name, theirs in zip(own, renamed) if theirs not in taught]
        if strange:
            raise UserError(
                "The teacher lacks some of the student's classes.",
                expected=_shortened(own) + " (the training data set's)",
                found=f"{_shortened(taught)} (the teacher's checkpoint); missing {_shortened(strange)}",
                remedy="map the names, as in teacher=dict(class_map={'mine': 'theirs'}), or use a teacher "
                "trained on these classes",
            )
        return [taught.index(name) for name in renamed]


def check_levels(levels: Any) -> tuple[int | None, ...] | None:
    """``teacher.levels``: for each level of the student the index of the teacher's, ``None`` for no match.

    Raises:
        UserError: it is not a list of integers.
    """
    if levels is None:
        return None
    right = isinstance(levels, (list, tuple)) and all(x is None or isinstance(x, int) for x in levels)
    if not right or all(x is None for x in levels):
        raise UserError(
            "teacher.levels must give the teacher level for each student level, like [1, 2, 3], "
            f"or [None, 0, 1] to skip the first, found {levels!r}"
        )
    return tuple(levels)


def check_class_map(class_map: Any) -> dict[str, str]:
    """``teacher.class_map``: from the student's class names to the teacher's.

    Raises:
        UserError: it is not a dict of names.
    """
    if class_map is None:
        return {}
    if not isinstance(class_map, Mapping) or not all(
        isinstance(x, str) for pair in class_map.items() for x in pair
    ):
        raise UserError(f"teacher.class_map must be a dict like {{'mine': 'theirs'}}, found {class_map!r}")
    return dict(class_map)


def _shortened(names: Any) -> str:
    names = list(names)
    return f"{len(names)}: " + ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
