"""Reads the two formats of ``torch.save`` since 0.1.10 as data, with any torch version."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Iterable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmkd.checkpoints.allowed import DamagedError, RefusedError, Storage, StorageType
from mmkd.checkpoints.unpickle import DataUnpickler

DEEPEST = 100  # nested containers; an mmengine checkpoint has six
_CHUNK = 1 << 20
_LEGACY_PROTOCOL = 1001


def read(file: BinaryIO, map_location: Any = None) -> Any:
    """Read what ``torch.save`` wrote, without running anything that it names.

    CRC-32 checksums of zip files are verified. Apart from Python's own objects, it uses no more memory than
    the file's size.

    Args:
        file: a seekable file, at its beginning.
        map_location: as for `torch.load`, but ``None`` means the CPU.

    Raises:
        RefusedError: the file contains more than data.
        DamagedError: it is not such a file, or is inconsistent. zipfile, struct and torch errors also mean
            this.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(262)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        content = _read_zip(file, size, map_location)
    elif start.endswith(b"ustar"):
        raise RefusedError("the tar format of torch < 0.1.10")
    else:
        content = _read_stream(_Bounded(file, size), map_location)
    _check_depth(content)
    return content


def _read_zip(file: BinaryIO, size: int, map_location: Any) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1]
        roots = [root for root in roots if f"{root}data.pkl" in names and root.endswith("/")]
        if len(set(roots)) != 1 or len(names) != len(entries):
            raise DamagedError("a zip file without one data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in names:
            raise RefusedError("a TorchScript model, which contains code")
        # torch.save does not compress; a compressed file may unpack to any size.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise DamagedError("a compressed zip file, which torch.save does not write")
        if f"{root}byteorder" in names:
            _check_byteorder(archive.read(f"{root}byteorder").decode("ascii"))
        storages: dict[str, Storage] = {}

        def storage(pid: Any) -> Storage:
            kind, key, location, count = _parts(pid)
            if key not in storages:
                entry = archive.getinfo(f"{root}data/{key}")
                if entry.file_size != count * kind.dtype.itemsize:
                    raise DamagedError(f"{entry.file_size} bytes for {count} numbers of {kind.dtype}")
                storages[key] = Storage(
                    torch.empty(count, dtype=kind.dtype, device=_device(map_location, location))
                )
                with archive.open(entry) as data:
                    _fill(storages[key].flat, data)
                    if data.read(1):  # also makes zipfile verify the checksum
                        raise DamagedError(f"{entry.filename} is longer than declared")
            return _of_kind(storages[key], kind)

        return DataUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _read_stream(file: _Bounded, map_location: Any) -> Any:
    if DataUnpickler(file, None).load() != torch.serialization.MAGIC_NUMBER:
        raise DamagedError("no torch.save magic number")
    if DataUnpickler(file, None).load() != _LEGACY_PROTOCOL:
        raise DamagedError("an unknown torch.save version")
    system = DataUnpickler(file, None).load()
    _check_byteorder("little" if system["little_endian"] else "big")
    storages: dict[str, Storage] = {}
    promised = 0

    def storage(pid: Any) -> Storage:
        nonlocal promised
        kind, key, location, count = _parts(pid)
        if key not in storages:
            promised += count * kind.dtype.itemsize
            if promised > file.size:
                raise DamagedError(f"{promised} bytes of tensor data declared")
            storages[key] = Storage(
                torch.empty(count, dtype=kind.dtype, device=_device(map_location, location))
            )
        return _of_kind(storages[key], kind)

    content = DataUnpickler(file, storage).load()
    keys = DataUnpickler(file, None).load()
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise DamagedError("a storage list that does not match its tensors")
    for key in keys:
        flat = storages[key].flat
        if int.from_bytes(file.read(8), "little") != flat.numel():
            raise DamagedError(f"a storage whose length is not {flat.numel()}")
        _fill(flat, file)
    return content


class _Bounded:
    """A file that never reads more than it has, because reading allocates memory first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self.size - self._file.tell()))

    def readline(self) -> bytes:
        return self._file.readline()


def _parts(pid: Any) -> tuple[StorageType, str, str, int]:
    """Type, key, location and count from a persistent id; legacy files add a view, which is never used."""
    if not (
        isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,))
    ):
        raise RefusedError(f"`{pid[0] if isinstance(pid, tuple) and pid else pid!r}` outside the weights")
    _, kind, key, location, count = pid[:5]
    whole = isinstance(count, int) and count >= 0
    if not (isinstance(kind, StorageType) and isinstance(key, str) and isinstance(location, str) and whole):
        raise DamagedError("an invalid storage description")
    return kind, key, location, count


def _of_kind(storage: Storage, kind: StorageType) -> Storage:
    if storage.flat.dtype != kind.dtype:
        raise DamagedError("one storage of two dtypes")
    return storage


def _fill(flat: Tensor, source: Any) -> None:
    """Read a storage in chunks, so that it is in memory only once."""
    on_cpu = flat if flat.device.type == "cpu" else torch.empty_like(flat, device="cpu")
    view: Any = on_cpu.view(torch.uint8).numpy().data
    filled = 0
    while filled < len(view):
        chunk = source.read(min(_CHUNK, len(view) - filled))
        if not chunk:
            raise DamagedError(f"{len(view) - filled} bytes of a storage are missing")
        view[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    if on_cpu is not flat:
        flat.copy_(on_cpu)


def _device(map_location: Any, location: str) -> Any:
    if isinstance(map_location, dict):
        return map_location.get(location, location)
    if isinstance(map_location, (str, torch.device)) or not callable(map_location):
        return "cpu" if map_location is None else map_location
    placed = map_location(torch.empty(0).untyped_storage(), location)
    return "cpu" if placed is None else placed.device


def _check_byteorder(order: str) -> None:
    if order != sys.byteorder:
        raise DamagedError(f"written on a {order}-endian machine; this one is not")


def _check_depth(content: Any) -> None:
    """Refuse content nested too deeply for recursive code."""
    level, seen = [content], set()
    for _ in range(DEEPEST):
        inner = [part for container in level for part in _items(container)]
        level = []
        for part in inner:
            if isinstance(part, (dict, list, tuple)) and id(part) not in seen:
                seen.add(id(part))
                level.append(part)
        if not level:
            return
    raise DamagedError(f"containers more than {DEEPEST} deep")


def _items(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return container.values()
    return container if isinstance(container, (list, tuple)) else ()
