"""Tries a teacher with several input variants on a few images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmkd.datasets import class_names
from mmkd.doctor.agreement import Agreement, clearly_better, judge
from mmkd.doctor.setup import TrainingSetup
from mmkd.doctor.teacher_predictions import LoadedTeacher, detect, load_images

# The number of images to try a variant on, and to confirm it.
_TRIED, _CONFIRMED = 8, 32


class Trial:
    """A teacher and the few images used to try input variants.

    Args:
        setup: the training to check.
        teacher: the teacher.
    """

    def __init__(self, setup: TrainingSetup, teacher: LoadedTeacher) -> None:
        self.setup, self.teacher = setup, teacher
        dataset = setup.dataset("val")
        self.classes = class_names(dataset.metainfo) or ()
        with_objects = [
            n for n in range(min(len(dataset), setup.images)) if dataset.get_data_info(n)["instances"]
        ]
        self.few, self.many = spaced(with_objects, _TRIED), spaced(with_objects, _CONFIRMED)
        self.preprocessor = dict(teacher.preprocessor)
        self.adopted = False
        self._pipeline: Sequence[Any] | None = None
        self._loaded: dict[tuple[str, int], list[Any]] = {}
        self._judged: dict[str, Agreement] = {}

    def ask(self, numbers: Sequence[int], preprocessor: Any = None, pipeline: Any = None) -> Agreement:
        """The teacher's agreement with the ground truth of these images, with these inputs."""
        pixels = self.preprocessor if preprocessor is None else preprocessor
        way = self._pipeline if pipeline is None else pipeline
        key = (repr(way), len(numbers))
        images = self._loaded.get(key) or load_images(self.setup, numbers, way)
        self._loaded = {key: images}
        question = repr((key, sorted(map(repr, pixels.items()))))
        if question not in self._judged:
            found = detect(self.setup, self.teacher, numbers, images=images, preprocessor=pixels)
            self._judged[question] = judge(found, self.classes)
        return self._judged[question]

    def best(self, ways: Mapping[str, Mapping[str, Any]]) -> tuple[str, Agreement, Agreement] | None:
        """The input variant that is clearly better than the current one, and both agreements."""
        if not ways:
            return None
        now = self.ask(self.few)
        tried = {name: self.ask(self.few, **way) for name, way in ways.items()}
        name = max(tried, key=lambda name: tried[name].ap_best)
        if not clearly_better(tried[name].ap_best, now.ap_best):
            return None
        now, then = self.ask(self.many), self.ask(self.many, **ways[name])
        return (name, now, then) if clearly_better(then.ap_best, now.ap_best) else None

    def adopt(self, preprocessor: Any = None, pipeline: Any = None) -> None:
        """Use this input variant from now on, so that a second fault can be found."""
        self.adopted = True
        self.preprocessor = self.preprocessor if preprocessor is None else preprocessor
        self._pipeline = self._pipeline if pipeline is None else pipeline


def spaced(numbers: Sequence[int], count: int) -> list[int]:
    """At most ``count`` numbers of a list, evenly spaced."""
    step = max(1, len(numbers) / count)
    return [numbers[int(place * step)] for place in range(min(count, len(numbers)))]
