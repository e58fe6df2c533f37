from __future__ import annotations

from mmkd.losses import Turns


def test_the_first_and_then_every_third() -> None:
    turns = Turns(3)
    due = []
    for turns.done in range(8):
        due += [turns.done] if turns.due else []
    assert due == [0, 3, 6]


def test_its_state() -> None:
    turns, other = Turns(2), Turns(2)
    turns.done = 5
    other.load_state_dict(turns.state_dict())
    assert other.done == 5
    assert not other.due
    assert not list(turns.parameters())
    assert not list(turns.buffers())
