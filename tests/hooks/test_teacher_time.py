from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from mmkd.hooks.teacher_time import TeacherTime


class SlowTeacher:
    """Takes 20 ms to be asked and 30 ms to answer."""

    def ask(self, inputs: Any, samples: Any) -> Any:
        time.sleep(0.02)

        def answer() -> str:
            time.sleep(0.03)
            return "answer"

        return answer

    def at(self, place: Any) -> str:
        time.sleep(0.02)
        return place

    def detect(self, inputs: Any) -> None: ...


def test_what_the_teacher_takes() -> None:
    teacher = SlowTeacher()
    clock = TeacherTime(SimpleNamespace(teacher=teacher, terms={"cls": None}))
    assert clock.begin()
    assert teacher.ask(0, 0)() == "answer"
    assert teacher.at("rois") == "rois"
    clock.end()
    assert clock.seconds == pytest.approx(0.07, abs=0.02)
    assert vars(teacher) == {}, "it is as it was"
    assert clock.begin()
    clock.end()
    assert clock.seconds == 0


def test_a_student_alone() -> None:
    clock = TeacherTime(SimpleNamespace())
    assert not clock.begin()
    clock.end()
