from __future__ import annotations

import pytest

from mmkd.outputs.methods import recorded, replaced


class Speaker:
    def say(self, word: str, *, loud: bool = False) -> str:
        return word.upper() if loud else word


def test_calls_are_recorded_within_each_other() -> None:
    one = Speaker()
    with recorded(one, "say") as outer:
        with recorded(one, "say") as inner:
            assert one.say("a", loud=True) == "A"
        one.say("b")
    one.say("c")
    assert list(inner) == ["A"]
    assert list(outer) == ["A", "b"]
    assert not vars(one)


def test_a_method_comes_back_after_an_error() -> None:
    one = Speaker()
    with pytest.raises(ZeroDivisionError), replaced(one, "say", lambda word: 1 / 0):
        one.say("a")
    assert one.say("a") == "a"
