"""Methods of an object that are watched or replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmkd.heads.calls import Calls


@contextmanager
def replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Have an object use another method.

    Args:
        owner: the object.
        name: of its method.
        method: what is called instead, without ``self``.
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
    """Record what an object's method gives, call by call."""
    seen: Calls[Any] = Calls()
    method = getattr(owner, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        seen.add(result)
        return result

    with replaced(owner, name, recording):
        yield seen
