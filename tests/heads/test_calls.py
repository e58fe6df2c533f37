from __future__ import annotations

from mmkd.heads.calls import Calls


def test_in_the_order_of_the_calls() -> None:
    calls: Calls[int] = Calls()
    assert list(calls) == []
    for call in range(3):
        calls.add(call)
    assert list(calls) == list(calls) == [0, 1, 2]
