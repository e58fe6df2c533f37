"""Temporarily watch or replace methods of an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmkd.heads.calls import Calls


@contextmanager
def replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of an object.

    Args:
        owner: the object.
        name: the method's name.
        method: called instead, without ``self``.
    """
    before = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)


@contextmanager
def recorded(owner: Any, name: str) -> Iterator[Calls[Any]]:
    """Record the return values of an object's method, call by call."""
    seen: Calls[Any] = Calls()
    method = getattr(owner, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        seen.add(result)
        return result

    with replaced(owner, name, recording):
        yield seen
