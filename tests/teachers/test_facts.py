from __future__ import annotations

import pytest
from torch import nn

from mmkd.teachers import facts
from mmkd.teachers.facts import describe

FOUND = {
    "config": "a.py",
    "checkpoint": "a.pth",
    "classes": ["cat", "dog"],
    "left_out": ["rpn_head"],
    "batch_norm_folded": True,
    "pixels_renormalized": True,
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(facts, "print_log", lambda text, *_, **__: texts.append(text))
    return texts


def test_what_is_said_and_given(said: list[str]) -> None:
    assert describe(nn.Linear(3, 2), FOUND) == {"detector": "Linear", "parameters_computed": 8, **FOUND}
    assert said == [
        "teacher: Linear, 0.00 M parameters used; checkpoint a.pth; classes cat, dog; "
        "not computed: rpn_head; pixels re-normalised"
    ]


def test_random_weights_are_told_of(said: list[str]) -> None:
    describe(
        nn.Linear(3, 2),
        {**FOUND, "checkpoint": None, "classes": None, "left_out": [], "pixels_renormalized": False},
    )
    assert said == [
        "teacher: Linear, 0.00 M parameters used; checkpoint None; no class names",
        "the teacher has no checkpoint: its weights are random",
    ]
