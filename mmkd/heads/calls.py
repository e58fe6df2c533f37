"""Calls of a layer, recorded by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

Call = TypeVar("Call")


class Calls(Generic[Call]):
    """What a hook recorded, call by call; iterates in call order.

    A linked list, because `torch.compile` recompiles for every length of a list that it appends to.
    """

    def __init__(self) -> None:
        self._last: tuple[Call, Any] | None = None

    def add(self, call: Call) -> None:
        """Record a call."""
        self._last = (call, self._last)

    def __iter__(self) -> Iterator[Call]:
        calls, last = [], self._last
        while last is not None:
            call, last = last
            calls.append(call)
        return reversed(calls)

    def __len__(self) -> int:
        return sum(1 for _ in self)
