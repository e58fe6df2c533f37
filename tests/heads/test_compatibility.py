from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmkd.errors import UserError
from mmkd.heads import check_heads
from mmkd.structures import HeadSpec

SPEC = HeadSpec(3, 3, True, ((8, 8), (16, 16)), (1, 1))


def test_equal_heads_pass() -> None:
    check_heads(SPEC, replace(SPEC))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 80, "cls_channels": 80}, "different classes.*\n.*3 classes.*\n.*80 classes"),
        ({"cls_channels": 4, "use_sigmoid": False}, "different classes.*\n.*\n.*softmax with background"),
        ({"strides": ((8, 8),), "num_base_priors": (1,)}, "differ in levels.*\n.*2 .*\n.*1 "),
        ({"strides": ((4, 4), (8, 8))}, "differ in strides.*\n.*8, 8.*\n.*4, 4"),
        ({"num_base_priors": (9, 9)}, r"base priors per level.*\n.*\(1, 1\).*\n.*\(9, 9\)"),
    ],
)
def test_differences_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_heads(SPEC, replace(SPEC, **change))
