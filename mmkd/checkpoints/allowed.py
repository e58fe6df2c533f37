"""The names allowed in a checkpoint's pickle: data only.

A pickle names functions and calls them. Here each name maps to a function of this file that checks its
arguments and creates data, never to another library's function of that name.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_EXPANDED = 1 << 20  # elements that a tensor may have beyond its storage, through zero strides
_NUMERIC = re.compile(r"[<>|=]?([?bBhHiIlLqQefdgFDG]|[biufcSUa]\d{1,9})")
_PLAIN = re.compile(
    r"float|double|half|b?float\d+|float8_\w+|complex\d+|bool|u?int(8|16|32|64)|short|int|long"
)
_ATOMS = (str, bytes, int, float, complex, type(None), np.generic)


class RefusedError(ValueError):
    """The file needs more than data; the text names it."""


class RefusedNameError(RefusedError):
    """The file names something that the user may allow; the text is that name."""


class DamagedError(ValueError):
    """The file is inconsistent or truncated."""


class Name(str):
    """A class that is only used as an argument, or created in one way; never called."""

    __slots__ = ()


@dataclass(frozen=True)
class StorageType:
    """The meaning of a name like ``torch.FloatStorage``."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """The flat elements of one dtype that tensors are views of."""

    flat: Tensor


NDARRAY = Name("numpy.ndarray")
TENSOR = Name("torch.Tensor")
HISTORY = Name("mmengine.logging.history_buffer.HistoryBuffer")


def check_keys(keys: Any) -> None:
    """Refuse keys other than atoms and flat tuples: hashing deeply nested keys overflows Python's stack."""
    for key in keys:
        if not all(isinstance(part, _ATOMS) for part in (key if type(key) is tuple else (key,))):
            raise RefusedError(f"{type(key).__name__} as a key")


def history_buffer_method(owner: object, name: str) -> Callable[..., Any]:
    """Replace ``builtins.getattr``, through which a pickled `HistoryBuffer` names its statistics."""
    from mmengine.logging import HistoryBuffer

    if not (owner is HISTORY or owner is HistoryBuffer) or name not in ("min", "max", "mean", "current"):
        raise RefusedError(f"getattr({owner!r}, {name!r})")
    method: Callable[..., Any] = getattr(HistoryBuffer, name)
    return method


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage; ``torch.Tensor.set_`` itself would enlarge a storage that is too small."""
    flat, size, stride = storage.flat, tuple(size), tuple(stride)
    whole = all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride))
    if not whole or len(size) != len(stride):
        raise DamagedError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    last = sum((n - 1) * step for n, step in zip(size, stride)) if 0 not in size else -1
    if offset + last + 1 > flat.numel() or math.prod(size) > max(flat.numel(), _EXPANDED):
        raise DamagedError(f"a tensor of size {size} in a storage of {flat.numel()} elements")
    return torch.empty(0, dtype=flat.dtype, device=flat.device).set_(
        flat.untyped_storage(), offset, size, stride
    )


def _tensor_v2(
    storage: Storage, offset: int, size: Any, stride: Any, grad: bool, hooks: Any, metadata: Any = None
) -> Tensor:
    if metadata:  # a conjugate or negative view
        raise RefusedError("a tensor with metadata")
    return _tensor(storage, offset, size, stride).requires_grad_(bool(grad))


def _tensor_v3(
    storage: Storage,
    offset: int,
    size: Any,
    stride: Any,
    grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> Tensor:
    """For dtypes without their own storage class."""
    return _tensor_v2(Storage(storage.flat.view(dtype)), offset, size, stride, grad, hooks, metadata)


def _parameter(data: Tensor, grad: bool, *_: Any) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=bool(grad))


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """A tensor with Python attributes, which are dropped."""
    if (function is not _tensor_v2 and function is not _tensor_v3) or kind is not TENSOR:
        raise RefusedError(f"a tensor of class {kind}")
    tensor: Tensor = function(*arguments)
    return tensor


def _device(kind: str, index: int | None = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


def _ordered_dict(items: Any = ()) -> OrderedDict[Any, Any]:
    pairs = [tuple(pair) for pair in items]
    check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _plain_dict(items: Any = ()) -> dict[Any, Any]:
    if not isinstance(items, dict):
        raise RefusedError("ConfigDict of a non-dict")
    return dict(items)


def _counter(items: Any = ()) -> Counter[Any]:
    if items and type(items) is not dict:
        raise RefusedError("Counter of a non-dict")
    return Counter(items)


def _set(items: Any = ()) -> set[Any]:
    check_keys(items)
    return set(items)


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(items))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, in the form that checkpoints' pickle protocol uses."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _bytearray(content: Any = b"", encoding: str = "latin1") -> bytearray:
    if not isinstance(content, (str, bytes)):
        raise RefusedError("bytearray of non-bytes")
    return bytearray(_encode(content, encoding) if isinstance(content, str) else content)


def _complex(real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


def _dtype(code: Any, *_: Any) -> np.dtype[Any]:
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if not (isinstance(code, str) and _NUMERIC.fullmatch(code)):
        raise RefusedError(f"numpy.dtype({code!r})")
    return np.dtype(code, align=False, copy=True)


def _array(kind: Any, *_: Any) -> np.ndarray[Any, Any]:
    if kind is not NDARRAY:
        raise RefusedError(f"an array of class {kind}")
    return np.ndarray((0,), np.int8)  # `build_array` fills it


def _scalar(dtype: np.dtype[Any], raw: bytes) -> Any:
    if not (isinstance(dtype, np.dtype) and isinstance(raw, bytes) and len(raw) == dtype.itemsize):
        raise DamagedError("a NumPy scalar")
    return np.frombuffer(raw, dtype)[0] if raw else dtype.type()


def build_array(array: np.ndarray[Any, Any], state: Any) -> None:
    """Fill an array in place, with numbers, booleans or text."""
    *_, shape, dtype, fortran, raw = state
    if not isinstance(raw, bytes):
        raise RefusedError("a NumPy array of objects")
    if not isinstance(dtype, np.dtype) or len(raw) != math.prod(shape) * dtype.itemsize:
        raise DamagedError(f"a NumPy array of shape {shape} in {len(raw)} bytes")
    array.__setstate__((1, shape, dtype, bool(fortran), raw))  # type: ignore[arg-type]


def build_dtype(dtype: np.dtype[Any], state: Any) -> None:
    """Set the byte order, the only difference between dtypes of one code."""
    if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
        raise RefusedError("a NumPy dtype with fields")
    own = dtype.__reduce__()[2]
    dtype.__setstate__((own[0], state[1], *own[2:]))  # type: ignore[attr-defined]


def build_ordered_dict(target: OrderedDict[Any, Any], state: Any) -> None:
    """Copy only ``_metadata``, the versions of modules."""
    metadata = state.get("_metadata") if isinstance(state, Mapping) else None
    if isinstance(metadata, Mapping):
        versions = {key: value for key, value in metadata.items() if isinstance(value, Mapping)}
        target._metadata = OrderedDict(versions)  # type: ignore[attr-defined]


def build_history(history: Any, state: Any) -> None:
    """Fill a `HistoryBuffer`; its statistics are those of the installed mmengine."""
    values, counts, longest = state["_log_history"], state["_count_history"], state["max_length"]
    arrays = isinstance(values, np.ndarray) and isinstance(counts, np.ndarray)
    if not arrays or values.shape != counts.shape or not isinstance(longest, int):
        raise DamagedError("a HistoryBuffer")
    history.__setstate__({"_log_history": values, "_count_history": counts, "max_length": longest})


_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}

ALLOWED: dict[str, Any] = {
    **{f"torch.{name}Storage": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.cuda.{name}Storage": StorageType(dtype) for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": StorageType(torch.uint8),
    **{f"torch.{name}": dtype for name, dtype in vars(torch).items() if _PLAIN.fullmatch(name)},
    "torch.Tensor": TENSOR,
    "torch.nn.parameter.Parameter": TENSOR,
    "torch.Size": torch.Size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "mmengine.config.config.ConfigDict": _plain_dict,
    HISTORY: HISTORY,
    "builtins.getattr": history_buffer_method,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "_codecs.encode": _encode,
    "numpy.ndarray": NDARRAY,
    "numpy.dtype": _dtype,
}
for _package in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
    ALLOWED |= {f"{_package}._reconstruct": _array, f"{_package}.scalar": _scalar}
