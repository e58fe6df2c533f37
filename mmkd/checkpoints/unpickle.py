"""Reads a pickle without running code."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mmkd.checkpoints.allowed import (
    ALLOWED,
    HISTORY,
    RefusedError,
    RefusedNameError,
    Storage,
    build_array,
    build_dtype,
    build_history,
    build_ordered_dict,
    check_keys,
)

# The operations that torch.save uses in pickle's binary protocols. Excluded are the text of protocol 0, the
# extension registry, and instances of named classes.
_OPCODES = (
    pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.POP_MARK,
    pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE,
    pickle.BININT + pickle.BININT1 + pickle.BININT2 + pickle.LONG1 + pickle.LONG4 + pickle.BINFLOAT,
    pickle.BINSTRING + pickle.SHORT_BINSTRING,
    pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.BINUNICODE8,
    pickle.BINBYTES + pickle.SHORT_BINBYTES + pickle.BINBYTES8,
    pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3,
    pickle.EMPTY_LIST + pickle.EMPTY_DICT + pickle.EMPTY_SET,
    pickle.BINGET + pickle.LONG_BINGET + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE,
    pickle.GLOBAL + pickle.STACK_GLOBAL,
)


_InPython: Any = pickle._Unpickler  # typed like the C version


class DataUnpickler(_InPython):
    """Python's own pure-Python unpickler, with an allowlist of names and fewer operations.

    A pickle can only call functions of `mmkd.checkpoints.allowed`, or those that the user allowed with
    ``torch.serialization.add_safe_globals``. Operations that change an object accept only plain containers.
    torch's own ``weights_only`` reader runs code before 2.6 (CVE-2025-32434), writes out of bounds before
    2.10 (CVE-2026-24747), and accepts different names in each version.

    Args:
        file: positioned at the pickle.
        storage: makes a tensor's storage from the pickle's ``('storage', type, key, location, count)``.

    Raises:
        RefusedError: in `load`, for content that is more than data.
    """

    dispatch = {code: _InPython.dispatch[code] for codes in _OPCODES for code in codes}  # noqa: RUF012

    def __init__(self, file: Any, storage: Callable[[Any], Storage] | None) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._users = _allowed_by_user()
        self._user_types = tuple(value for value in self._users.values() if isinstance(value, type))
        named = [*(value for value in ALLOWED.values() if callable(value)), *self._users.values()]
        self._callable = {id(value) for value in named}

    def find_class(self, module: str, name: str) -> Any:
        """The function or class that a name maps to."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in ALLOWED:
            return ALLOWED[full]
        if full in self._users:
            return self._users[full]
        raise RefusedNameError(full)

    def persistent_load(self, pid: Any) -> Storage:
        """A storage; a checkpoint's pickle refers to nothing else."""
        if self._storage is None:
            raise RefusedError("a storage outside the weights")
        return self._storage(pid)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if id(function) not in self._callable or type(arguments) is not tuple:
            raise RefusedError(f"a call of {function!r}")
        self.stack[-1] = function(*arguments)

    def _newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if kind is HISTORY:
            from mmengine.logging import HistoryBuffer

            self.stack.append(HistoryBuffer.__new__(HistoryBuffer))
        elif isinstance(kind, type) and kind in self._user_types:
            self.stack.append(kind.__new__(kind, *arguments))
        else:
            raise RefusedError(f"an object of {kind!r}")

    def _build(self) -> None:
        state = self.stack.pop()
        instance = self.stack[-1]
        kind = type(instance)
        if kind is OrderedDict:
            build_ordered_dict(instance, state)
        elif kind is np.ndarray:
            build_array(instance, state)
        elif isinstance(instance, np.dtype):
            build_dtype(instance, state)
        elif f"{kind.__module__}.{kind.__qualname__}" == HISTORY:
            build_history(instance, state)
        elif kind in self._user_types:
            self.stack.append(state)
            _InPython.dispatch[pickle.BUILD[0]](self)
        else:
            raise RefusedError(f"attributes of {kind.__name__}")

    def _append(self) -> None:
        value = self.stack.pop()
        self._target(list).append(value)

    def _appends(self) -> None:
        values = self.pop_mark()
        self._target(list).extend(values)

    def _setitem(self) -> None:
        value = self.stack.pop()
        self._set([self.stack.pop(), value])

    def _setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        check_keys(items[::2])
        target = self._target(dict, OrderedDict, Counter)
        for key, value in zip(items[::2], items[1::2]):
            target[key] = value

    def _additems(self) -> None:
        items = self.pop_mark()
        check_keys(items)
        self._target(set).update(items)

    def _frozenset(self) -> None:
        items = self.pop_mark()
        check_keys(items)
        self.stack.append(frozenset(items))

    def _binpersid(self) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))

    def _target(self, *kinds: type) -> Any:
        target = self.stack[-1]
        if type(target) not in kinds and not (isinstance(target, kinds) and type(target) in self._user_types):
            raise RefusedError(f"items of {type(target).__name__}")
        return target

    dispatch |= {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _newobj,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.ADDITEMS[0]: _additems,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BINPERSID[0]: _binpersid,
    }


def _allowed_by_user() -> dict[str, Any]:
    """Names from ``torch.serialization.add_safe_globals``, available in torch since 2.4."""
    entries: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()
    named = (entry if isinstance(entry, tuple) else (entry, _full_name(entry)) for entry in entries)
    return {name: value for value, name in named}


def _full_name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
