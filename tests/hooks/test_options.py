from __future__ import annotations

from typing import Any

import pytest
from mmengine.hooks import IterTimerHook

from mmkd.errors import UserError
from mmkd.hooks import TrainOnlyHook
from mmkd.hooks.options import check_hooks


def test_what_is_right_passes() -> None:
    check_hooks(None)
    check_hooks([])
    check_hooks(
        [
            {"type": "DistillScheduleHook", "kind": "cosine", "priority": "LOW"},
            {"type": TrainOnlyHook, "modules": ["neck"]},
            {"type": "EMAHook", "whatever": 1},  # mmengine's own
            {"type": "SomebodysHook"},
            IterTimerHook(),
        ]
    )


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ("MetricsFileHook", "custom_hooks must be a list"),
        ({"type": "MetricsFileHook"}, "custom_hooks must be a list"),
        ([None], r"custom_hooks\[0\] is not a hook"),
        (["MetricsFileHook"], r"custom_hooks\[0\] is not a hook"),
        ([{"kind": "cosine"}], r"custom_hooks\[0\] is not a hook"),
        ([{"type": None}], r"custom_hooks\[0\] is not a hook"),
        (
            [{"type": "MetricsFileHook"}, {"type": "DistillScheduleHook", "kindd": 1}],
            r"custom_hooks\[1\] \(DistillScheduleHook\) has no option kindd.\n.*kind",
        ),
        ([{"type": "TrainOnlyHook"}], "lacks modules"),
        ([{"type": TrainOnlyHook, "module": "neck"}], "has no option module"),
    ],
)
def test_mistakes(hooks: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_hooks(hooks)
