from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from mmkd.checkpoints.allowed import DamagedError, RefusedError
from mmkd.checkpoints.reader import DEEPEST, read

FORMATS = pytest.mark.parametrize("zipped", [True, False])


def saved(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def load(data: bytes, map_location: Any = None) -> Any:
    return read(io.BytesIO(data), map_location)


def rewritten(data: bytes, change: Callable[[str, bytes], bytes | None], **options: Any) -> bytes:
    """The zip with each entry's content changed, with sums that are right; None leaves it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", **options) as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return out.getvalue()


def checkpoint() -> dict[str, Any]:
    """Like mmengine's, with an optimizer and a message hub."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 5))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 10, 10)).sum().backward()
    optimizer.step()
    hub = MessageHub.get_instance("reader")
    hub.update_scalar("train/loss", 1.5)
    hub.update_info("best_score", np.float64(0.5))
    return {
        "meta": {"epoch": 3, "dataset_meta": {"classes": ("a", "b"), "palette": [(1, 2, 3)]}, "cfg": "…"},
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "message_hub": hub.state_dict(),
    }


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool]
DTYPES += [torch.complex64]
if hasattr(torch, "uint16"):  # older versions cannot save these
    DTYPES += [torch.uint16, torch.float8_e5m2]


@FORMATS
def test_tensors(zipped: bool) -> None:
    many = [torch.arange(12).reshape(3, 4).to(torch.float32).to(dtype) for dtype in DTYPES]
    shared = torch.arange(20.0)
    kept = {"views": [shared[3:9], shared[::2], shared.reshape(4, 5).t()], "empty": torch.zeros(0, 3)}
    parameter = torch.nn.Parameter(torch.ones(3))
    odd = [torch.float16, torch.Size([1, 2]), torch.device("cuda", 1)]
    # Dtypes without a storage class are only in zip files.
    content = {"many": many if zipped else many[:8], **kept, "parameter": parameter, "odd": odd}
    found = load(saved(content, zipped))
    for one, other in zip(
        [*content["many"], *kept["views"], kept["empty"]], [*found["many"], *found["views"], found["empty"]]
    ):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.stride() == other.stride()
        assert one.reshape(-1).tolist() == other.reshape(-1).tolist()
    assert found["odd"] == odd
    assert isinstance(found["parameter"], torch.nn.Parameter)
    assert found["parameter"].requires_grad
    found["views"][0][0] = -1.0
    assert found["views"][2][3, 0] == -1.0, "views of one storage stay so"


@FORMATS
def test_what_mmengine_writes(zipped: bool) -> None:
    content = checkpoint()
    found = load(saved(content, zipped))
    assert found["meta"] == content["meta"]
    assert found["message_hub"]["log_scalars"]["train/loss"].mean() == 1.5
    assert found["message_hub"]["runtime_info"]["best_score"] == 0.5
    assert found["state_dict"]._metadata == content["state_dict"]._metadata
    assert same(content, found)


@FORMATS
def test_map_location(zipped: bool) -> None:
    data = saved({"w": torch.ones(2)}, zipped)
    assert load(data, "meta")["w"].device.type == "meta"
    assert load(data, torch.device("cpu"))["w"].tolist() == [1, 1]
    assert load(data, {"cpu": "meta"})["w"].device.type == "meta"
    assert load(data, {"cuda:0": "meta"})["w"].device.type == "cpu"
    assert load(data, lambda storage, location: storage)["w"].device.type == "cpu"
    assert load(data, lambda storage, location: None)["w"].device.type == "cpu"
    asked: list[str] = []
    load(data, lambda storage, location: asked.append(location))
    assert asked == ["cpu"]


def test_what_was_on_a_gpu_comes_to_the_cpu() -> None:
    data = rewritten(
        saved({"w": torch.ones(2)}),
        lambda name, content: content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"),
    )
    assert b"cuda:0" in data
    assert load(data)["w"].tolist() == [1, 1]


def test_a_file_name_of_any_alphabet(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "模型 é.pth")
    assert load((tmp_path / "模型 é.pth").read_bytes())["w"].tolist() == [1, 1]


ZIP = saved({"a": torch.ones(1000), "b": torch.zeros(500)})


def without(part: str) -> Callable[[str, bytes], bytes | None]:
    return lambda name, content: None if name.endswith(part) else content


def with_pickle(old: bytes, new: bytes) -> Callable[[str, bytes], bytes | None]:
    return lambda name, content: content.replace(old, new) if name.endswith("data.pkl") else content


def same_bytes(_: str, content: bytes) -> bytes:
    return content


DAMAGED = {
    "no pickle": rewritten(ZIP, without("data.pkl")),
    "no storage": rewritten(ZIP, without("data/0")),
    "short storage": rewritten(ZIP, lambda name, c: c[:-4] if name.endswith("data/0") else c),
    "long storage": rewritten(ZIP, lambda name, c: c + bytes(4) if name.endswith("data/0") else c),
    "swapped": rewritten(ZIP, lambda name, c: c[:2000] if name.endswith("data/0") else c),
    "other count": rewritten(ZIP, with_pickle(b"M\xe8\x03", b"M\xe9\x03")),
    "terabytes": rewritten(ZIP, with_pickle(b"M\xe8\x03", b"\x8a\x06\x00\x00\x00\x00\x00\x01")),
    "other dtype": rewritten(ZIP, with_pickle(b"FloatStorage", b"DoubleStorage")),
    "big-endian": rewritten(ZIP, lambda name, c: b"big" if name.endswith("byteorder") else c),
    "compressed": rewritten(ZIP, same_bytes, compression=zipfile.ZIP_DEFLATED),
    "two of a name": rewritten(ZIP, same_bytes),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", DAMAGED)
def test_contradictions(name: str) -> None:
    data = DAMAGED[name]
    if name == "two of a name":
        out = io.BytesIO(data)
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr(archive.namelist()[0], archive.read(archive.namelist()[0]))
        data = out.getvalue()
    elif name == "other count":
        assert data != rewritten(ZIP, same_bytes)
    with pytest.raises((DamagedError, KeyError)):
        load(data)


def test_a_program_is_refused() -> None:
    out = io.BytesIO(ZIP)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(archive.namelist()[0].split("/")[0] + "/constants.pkl", pickle.dumps(()))
    with pytest.raises(RefusedError, match="TorchScript"):
        load(out.getvalue())


def test_every_flipped_byte_of_a_storage_is_found() -> None:
    start = ZIP.index(torch.ones(4).numpy().tobytes())
    for position in range(start, start + 4000, 97):
        data = bytearray(ZIP)
        data[position] ^= 1
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            load(bytes(data))


def test_a_legacy_file_that_promises_too_much() -> None:
    data = saved({"a": torch.ones(1000)}, zipped=False)
    count = b"M\xe8\x03"
    assert count in data
    with pytest.raises(DamagedError, match="declared"):
        load(data.replace(count, b"\x8a\x06\x00\x00\x00\x00\x00\x01"))
    with pytest.raises(DamagedError):
        load(data.replace(count, b"M\xe7\x03", 1))
    length = struct.pack("<q", 1000)
    assert data.count(length) == 1
    with pytest.raises(DamagedError, match="a storage whose length"):
        load(data.replace(length, struct.pack("<q", 2**40)))
    with pytest.raises(DamagedError, match="missing"):
        load(data[:-1])


def test_deep_nests() -> None:
    def nest(depth: int) -> Any:
        value: Any = []
        for _ in range(depth):
            value = [value]
        return value

    assert load(saved({"x": nest(DEEPEST - 5)}))
    deep = pickle.PROTO + b"\x02" + pickle.EMPTY_LIST * 50_000 + pickle.APPEND * 49_999 + pickle.STOP
    tuples = pickle.PROTO + b"\x02)" + pickle.TUPLE1 * 50_000 + pickle.STOP
    as_key = pickle.PROTO + b"\x02})" + pickle.TUPLE1 * 50_000 + b"K\x01s" + pickle.STOP
    for data in (deep, tuples, as_key):
        with pytest.raises((DamagedError, RefusedError)):
            load(rewritten(ZIP, lambda name, c, data=data: data if name.endswith("data.pkl") else c))
    endless: list[Any] = []
    endless.append(endless)
    assert load(saved({"x": endless}))["x"][0][0] is not None


def same(one: Any, other: Any) -> bool:
    """Equal in all that a training would read."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "_log_history"):
        return all(np.array_equal(a, b) for a, b in zip(one.data, other.data))
    return type(one) is type(other) and bool(one == other)
