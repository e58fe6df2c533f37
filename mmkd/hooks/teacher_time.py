"""Measure the time of the teacher in a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from mmkd.teachers import asked_by

_METHODS = ("ask", "at", "detect")


class TeacherTime:
    """Measures how many seconds the teachers of a distilled model take.

    On a GPU each call is synchronised before and after, so that a teacher on its own stream does not overlap
    with the student: measure only some steps.

    Args:
        model: if it is not distilled, nothing is measured.

    Attributes:
        seconds: spent in the teachers since `begin`.
    """

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self._teachers = (
            [teacher for teacher, _ in asked_by(model.teacher, list(model.terms))]
            if getattr(model, "teacher", None) is not None and hasattr(model, "terms")
            else []
        )
        self._watch = ExitStack()

    def begin(self) -> bool:
        """Start measuring; returns whether the model has a teacher."""
        self.seconds = 0.0
        for teacher in self._teachers:
            for name in _METHODS:
                # On the object alone, so that removing it leaves the class's own.
                vars(teacher)[name] = self._timed(getattr(teacher, name))
                self._watch.callback(vars(teacher).pop, name, None)
        return bool(self._teachers)

    def end(self) -> None:
        """Stop measuring."""
        self._watch.close()

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            device = next((x.device for x in args if isinstance(x, Tensor) and x.is_cuda), None)
            began = _now(device)
            result = function(*args, **kwargs)
            self.seconds += _now(device) - began
            if not callable(result):
                return result

            def wait() -> Any:  # `ask` returns a function that gives the answer
                began = _now(device)
                answer = result()
                self.seconds += _now(device) - began
                return answer

            return wait

        return timed


def _now(device: torch.device | None) -> float:
    if device is not None:
        torch.cuda.synchronize(device)
    return time.perf_counter()
