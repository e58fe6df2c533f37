from __future__ import annotations

import io
import os
import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from mmkd.checkpoints.allowed import RefusedError, RefusedNameError
from mmkd.checkpoints.unpickle import DataUnpickler

STOP, TWO = pickle.STOP, pickle.PROTO + b"\x02"


def load(data: bytes) -> Any:
    return DataUnpickler(io.BytesIO(data), None).load()


DATA = {
    "plain": [None, True, -1, 10**30, 1.5, "é", b"\x00\xff", (), (1,), (1, 2, 3, 4), {"a": [{}]}],
    "sets": [{1, 2}, frozenset({"a"}), bytearray(b"ab"), 1 + 2j],
    "containers": [OrderedDict(a=1), Counter({3: 1}), list(range(3000)), dict.fromkeys(range(3000))],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", DATA)
def test_data(name: str, protocol: int) -> None:
    if protocol == 5:
        data = [value for value in DATA[name] if not isinstance(value, bytearray)]
    else:
        data = DATA[name]
    assert load(pickle.dumps(data, protocol)) == data


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", ">f8", "U3", "S2"]
)
def test_numpy(dtype: str, protocol: int) -> None:
    array = np.asfortranarray(np.ones((2, 3)).astype(dtype))
    found, scalar = load(pickle.dumps([array, array[0, 0]], protocol))
    assert found.dtype == pickle.loads(pickle.dumps(array)).dtype
    assert (found == array).all()
    assert scalar == array[0, 0]
    assert np.dtype("f8").isnative


def test_numpy_of_both_module_names() -> None:
    data = pickle.dumps(np.arange(3), 2)
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        assert load(data.replace(old, new)).tolist() == [0, 1, 2]


def test_history_buffer() -> None:
    buffer = HistoryBuffer([1.0, 2.0], [1, 1], max_length=5)
    found = load(pickle.dumps(buffer, 2))
    assert isinstance(found, HistoryBuffer)
    assert (found.mean(), found.max_length, found.statistics("max")) == (1.5, 5, 2.0)


def test_a_file_cannot_change_how_mmengine_computes_statistics() -> None:
    buffer = HistoryBuffer([1.0], [1])
    state = {**vars(buffer), "statistics_methods": {"mean": HistoryBuffer.min}, "update": len}
    made = TWO + b"cmmengine.logging.history_buffer\nHistoryBuffer\n)" + pickle.NEWOBJ
    with pytest.raises(RefusedNameError, match="builtins.len"):
        load(made + pickle.dumps(state, 2)[2:-1] + pickle.BUILD + STOP)
    del state["update"]
    found = load(made + pickle.dumps(state, 2)[2:-1] + pickle.BUILD + STOP)
    assert found._statistics_methods["mean"] is HistoryBuffer.mean
    assert "statistics_methods" not in vars(found)


def test_attributes_of_a_dict_are_left_out_but_for_versions() -> None:
    state = OrderedDict(a=1)
    state._metadata = {"": {"version": 1}, "x": "?"}  # type: ignore[attr-defined]
    state.get = "overwritten"  # type: ignore[assignment]
    found = load(pickle.dumps(state, 2))
    assert found.get("a") == 1
    assert found._metadata == {"": {"version": 1}}


def test_config_dict_becomes_a_dict() -> None:
    found = load(pickle.dumps({"meta": ConfigDict(a=ConfigDict(b=[1]))}, 2))
    assert found == {"meta": {"a": {"b": [1]}}}
    assert type(found["meta"]["a"]) is dict


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "thing",
    [
        Calls(os.system, "touch canary"),
        Calls(eval, "open('canary', 'w')"),
        Calls(getattr, os.path.join, "__globals__"),
        Calls(torch.load, "x"),
        Calls(np.load, "x"),
        Calls(np.ndarray, (3,)),
        Calls(HistoryBuffer),
        Path("x"),
        torch.nn.Linear(1, 1),
        np.array([None]),
        np.zeros(2, [("a", "f4")]),
        {((1,),): 1},
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_refuses(thing: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError):
        load(pickle.dumps([thing], protocol))
    assert not Path("canary").exists()


FUNCTION = b"c_codecs\nencode\n"


@pytest.mark.parametrize(
    "data",
    [
        TWO + FUNCTION + b"}" + pickle.BUILD + STOP,  # attributes of a function
        TWO + b"cnumpy\nndarray\n)" + pickle.NEWOBJ + STOP,
        TWO + b"ctorch\nTensor\n(K\x01t" + pickle.REDUCE + STOP,
        TWO + b"c__builtin__\ngetattr\nK\x01" + pickle.REDUCE + STOP,  # arguments that are no tuple
        TWO + b"]K\x00K\x01" + pickle.SETITEM + STOP,  # items of a list
        TWO + b"}K\x00" + pickle.APPEND + STOP,
        TWO + b"K\x01" + pickle.BINPERSID + STOP,
        TWO + b"X\x03\x00\x00\x00abcK\x01a" + STOP,
    ],
)
def test_operations_on_what_they_are_not_for(data: bytes) -> None:
    with pytest.raises((RefusedError, AttributeError)):
        load(data)


@pytest.mark.parametrize(
    "data",
    [b"cos\nsystem\n.", b"(ios\nsystem\n.", b"S'a'\n.", b"I1\n.", b"\x82\x01.", b"P1\n.", b"\x96" + bytes(8)],
)
def test_operations_that_checkpoints_do_not_need(data: bytes) -> None:
    with pytest.raises((RefusedError, KeyError)):
        load(data)


def test_promised_lengths_take_no_memory() -> None:
    for data in (b"\x8e" + b"\xff" * 7 + b"\x0f", b"\x8d" + b"\xff" * 7 + b"\x0f", b"T\xff\xff\xff\x7f"):
        with pytest.raises((EOFError, OverflowError, pickle.UnpicklingError)):
            load(TWO + data)
    assert load(TWO + b"K\x01" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff" + STOP) == 1


def test_names_that_the_user_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps({"k": Allowed(3), "c": Calls(doubled, 4)}, 2)
    with pytest.raises(RefusedNameError, match="Allowed"):
        load(data)
    allowed = [Allowed, (doubled, f"{__name__}.doubled")]
    monkeypatch.setattr(torch.serialization, "get_safe_globals", lambda: allowed, raising=False)
    found = load(data)
    assert (found["k"].value, found["c"]) == (3, 8)


class Allowed:
    def __init__(self, value: int) -> None:
        self.value = value


def doubled(value: int) -> int:
    return 2 * value
