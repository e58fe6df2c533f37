from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from mmkd.errors import UserError
from mmkd.heads import check_heads, levels_by_stride
from mmkd.structures import HeadSpec

SPEC = HeadSpec(3, 3, True, ((8, 8), (16, 16)), (1, 1))
OTHER_CLASSES = {"num_classes": 80, "cls_channels": 80}
OTHER_PRIORS = {"num_base_priors": (9, 9)}
OTHER_LEVELS = {"strides": ((8, 8),), "num_base_priors": (1,)}
OTHER_STRIDES = {"strides": ((4, 4), (8, 8))}


def test_equal_heads_pass() -> None:
    check_heads(SPEC, replace(SPEC))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (OTHER_CLASSES, "different classes.*\n.*3 classes.*\n.*80 classes"),
        ({"cls_channels": 4, "use_sigmoid": False}, "different classes.*\n.*\n.*softmax with background"),
        (OTHER_LEVELS, "differ in levels.*\n.*2 .*\n.*1 "),
        (OTHER_STRIDES, "differ in strides.*\n.*8, 8.*\n.*4, 4"),
        (OTHER_PRIORS, r"base priors per level.*\n.*\(1, 1\).*\n.*\(9, 9\)"),
    ],
)
def test_differences_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_heads(SPEC, replace(SPEC, **change))


@pytest.mark.parametrize(
    ("needs", "compared"),
    [
        ({"feats"}, {"levels"}),
        ({"feats", "layers", "towers", "labels"}, {"levels"}),
        ({"cls_logits"}, {"levels", "priors", "classes"}),
        ({"bbox_pred"}, {"levels", "priors"}),
        ({"boxes"}, {"levels", "priors"}),
        ({"feats", "extra"}, {"levels", "priors"}),
    ],
)
def test_only_what_is_read_is_compared(needs: set[Any], compared: set[str]) -> None:
    changes = {
        "classes": [OTHER_CLASSES],
        "priors": [OTHER_PRIORS],
        "levels": [OTHER_LEVELS, OTHER_STRIDES],
    }
    for what, cases in changes.items():
        for change in cases:
            other = replace(SPEC, **change)
            if what in compared:
                with pytest.raises(UserError):
                    check_heads(SPEC, other, frozenset(needs))
            else:
                check_heads(SPEC, other, frozenset(needs))


def test_priors_that_no_loss_pairs() -> None:
    check_heads(SPEC, replace(SPEC, **OTHER_PRIORS), pairs_priors=False)
    with pytest.raises(UserError, match="base priors"):  # without a dense head
        check_heads(SPEC, replace(SPEC, num_base_priors=(0, 0)), pairs_priors=False)
    with pytest.raises(UserError, match="strides"):
        check_heads(SPEC, replace(SPEC, **OTHER_STRIDES), pairs_priors=False)


def strided(*strides: int) -> HeadSpec:
    return replace(SPEC, strides=tuple((x, x) for x in strides), num_base_priors=(0,) * len(strides))


@pytest.mark.parametrize(
    ("student", "teacher", "levels"),
    [
        (strided(8, 16, 32, 64, 128), strided(4, 8, 16, 32, 64), [1, 2, 3, 4]),
        (strided(4, 8, 16, 32, 64), strided(8, 16, 32, 64, 128), [None, 0, 1, 2, 3]),
        (strided(4, 8), strided(16, 32), []),
    ],
)
def test_levels_of_equal_strides(student: HeadSpec, teacher: HeadSpec, levels: list[int | None]) -> None:
    assert levels_by_stride(student, teacher) == levels
    message = re.escape(f"set teacher.levels={levels}") if levels else "teacher.levels"
    with pytest.raises(UserError, match=message):
        check_heads(student, teacher, frozenset({"feats"}))
