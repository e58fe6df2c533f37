from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmkd import UserError
from mmkd.teachers import check_inherit, inherit_weights


class Tiny(nn.Module):
    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.neck = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, width))
        self.head = nn.Linear(2, 1)
        self.level_embed = nn.Parameter(torch.zeros(3))
        for parameter in self.parameters():
            nn.init.constant_(parameter, value)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.save({"state_dict": Tiny(4, 1.0).state_dict()}, tmp_path / "teacher.pth")
    return str(tmp_path / "teacher.pth")


def test_what_agrees_in_name_and_shape_is_copied(checkpoint: str) -> None:
    student = Tiny(3, 0.0)
    copied, kept = inherit_weights(student, {"neck": "neck", "level_embed": "level_embed"}, checkpoint)
    assert copied == ["level_embed", "neck.0.weight", "neck.0.bias"]
    assert kept == ["neck.1.weight", "neck.1.bias"]
    assert student.neck[0].weight.unique().tolist() == student.level_embed.unique().tolist() == [1]
    assert not student.neck[1].weight.any()
    assert not student.head.weight.any(), "it was not asked for"


def test_a_part_is_no_beginning_of_a_name(checkpoint: str) -> None:
    with pytest.raises(UserError, match="No teacher weights match"):
        inherit_weights(Tiny(3, 0.0), {"neck.1": "neck.1"}, checkpoint)
    assert check_inherit(["neck.1", "level_embed"], Tiny(3, 0.0)) == {
        "neck.1": "neck.1",
        "level_embed": "level_embed",
    }


def test_what_the_teacher_calls_otherwise(checkpoint: str) -> None:
    student = Tiny(3, 0.0)
    parts = check_inherit({"neck": "neck", "neck.0": "head"}, student)
    with pytest.raises(UserError, match="No teacher weights match"):
        inherit_weights(student, parts, checkpoint)
    student.neck[0] = nn.Linear(2, 1)
    copied, _ = inherit_weights(student, parts, checkpoint)
    assert copied == ["neck.0.weight", "neck.0.bias"]
    assert student.neck[0].weight.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("neck", "list of names"),
        ([1], "list of names"),
        ({"neck": 1}, "dict of the student's names"),
        (["nek"], "unknown student modules: nek"),
        ({"nek": "neck"}, "unknown student modules: nek"),
    ],
)
def test_what_is_no_part_is_refused(parts: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_inherit(parts, Tiny(3, 0.0))
