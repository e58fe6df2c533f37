from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmkd.checkpoints.allowed import (
    ALLOWED,
    HISTORY,
    DamagedError,
    RefusedError,
    Storage,
    check_keys,
    history_buffer_method,
)

TENSOR = ALLOWED["torch._utils._rebuild_tensor_v2"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HISTORY, "__init__"),
        (HistoryBuffer, "__globals__"),
        (np.ndarray, "mean"),
        (torch.Tensor, "min"),
        (str(HISTORY), "min"),
    ],
)
def test_getattr_resolves_history_methods_only(owner: object, name: str) -> None:
    with pytest.raises(RefusedError, match="getattr"):
        history_buffer_method(owner, name)


def test_history_method() -> None:
    assert history_buffer_method(HistoryBuffer, "mean") is HistoryBuffer.mean
    assert history_buffer_method(HISTORY, "max") is HistoryBuffer.max


def test_no_name_stands_for_what_another_library_has_under_it() -> None:
    functions = [value for value in ALLOWED.values() if callable(value)]
    others = [f for f in functions if f is not torch.Size and f.__module__ != "mmkd.checkpoints.allowed"]
    assert len(functions) > 15
    assert others == []


def test_every_storage_and_dtype_of_its_name() -> None:
    for name, dtype in {"Float": torch.float32, "Bool": torch.bool, "BFloat16": torch.bfloat16}.items():
        assert ALLOWED[f"torch.{name}Storage"].dtype is dtype
    assert ALLOWED["torch.float64"] is torch.float64
    assert "torch.qint8" not in ALLOWED
    assert "torch.bits8" not in ALLOWED


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (11,), (1,)),
        (8, (3,), (1,)),
        (0, (2, 2), (10, 1)),
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (2,), (1, 1)),
        (0, (10**12,), (0,)),
        (0, (2.0,), (1,)),
        (11, (0,), (1,)),
    ],
)
def test_a_tensor_stays_in_its_storage(offset: int, size: Any, stride: Any) -> None:
    with pytest.raises(DamagedError, match="a tensor of size"):
        TENSOR(Storage(torch.arange(10.0)), offset, size, stride, False, {})


def test_views_of_a_storage() -> None:
    storage = Storage(torch.arange(10.0))
    assert TENSOR(storage, 2, (2, 3), (1, 2), False, {}).tolist() == [[2, 4, 6], [3, 5, 7]]
    assert TENSOR(storage, 3, (4, 2), (0, 1), False, {}).tolist() == [[3, 4]] * 4
    assert TENSOR(storage, 0, (), (), True, {}).requires_grad
    assert TENSOR(storage, 10, (0, 3), (3, 1), False, {}).shape == (0, 3)
    one, other = (TENSOR(storage, 0, (10,), (1,), False, {}) for _ in range(2))
    one[0] = 5.0
    assert other[0] == 5.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("numpy.dtype", ("O8", False, True)),
        ("numpy.dtype", ("V16", False, True)),
        ("numpy.dtype", ({"names": ["a"], "formats": ["O"]},)),
        ("numpy.core.multiarray._reconstruct", (np.matrix, (0,), b"b")),
        ("builtins.bytearray", (10**12,)),
        ("builtins.set", ([((),)],)),
        ("collections.Counter", ([1, 1],)),
        ("collections.OrderedDict", ([[((1,),), 2]],)),
        ("mmengine.config.config.ConfigDict", ([("a", 1)],)),
        ("_codecs.encode", ("a", "rot13")),
        (
            "torch._utils._rebuild_tensor_v2",
            (Storage(torch.ones(1)), 0, (1,), (1,), False, {}, {"neg": True}),
        ),
        ("torch._tensor._rebuild_from_type_v2", (print, ALLOWED["torch.Tensor"], (1,), {})),
    ],
)
def test_arguments_that_are_no_data(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(RefusedError):
        ALLOWED[name](*arguments)


def test_keys() -> None:
    check_keys(["a", 1, 1.0, None, b"x", (1, "a"), np.int64(3), True])
    for key in ((1, (2,)), frozenset(), torch.ones(1), ALLOWED):
        with pytest.raises(RefusedError, match="as a key"):
            check_keys([key])


def test_scalars() -> None:
    scalar = ALLOWED["numpy._core.multiarray.scalar"]
    assert scalar(np.dtype("f8"), np.float64(1.5).tobytes()) == 1.5
    assert scalar(np.dtype("S0"), b"") == b""
    for wrong in (("f8", bytes(8)), (np.dtype("f8"), bytes(7)), (np.dtype("f8"), "x" * 8)):
        with pytest.raises(DamagedError):
            scalar(*wrong)
