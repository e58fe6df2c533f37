from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd.errors import UserError
from mmkd.teachers import store as module
from mmkd.teachers.store import EntryStore


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(module, "print_log", lambda text, *_: texts.append(text))
    return texts


def entry(value: float = 1.0, size: int = 100) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size,), value, dtype=torch.float16), "index": torch.arange(3, dtype=torch.int32)}


def test_gives_back_what_was_put(tmp_path: Path) -> None:
    store = EntryStore(tmp_path, "teacher", 10**6)
    assert store.get("ab12") is None
    assert store.put("ab12", entry(2.5))
    for other in (store, EntryStore(tmp_path, "teacher", 10**6)):
        found = other.get("ab12")
        assert found is not None
        assert all(torch.equal(found[name], wanted) for name, wanted in entry(2.5).items())
        assert len(other) == 1
    assert (store.entries_written, store.bytes_written) == (1, store._path("ab12").stat().st_size)


@pytest.mark.parametrize("damage", [b"", b"\x10", b"not safetensors at all, whatever it was"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, said: list[str], damage: bytes) -> None:
    store = EntryStore(tmp_path, "teacher", 10**6)
    store.put("ab12", entry())
    store._path("ab12").write_bytes(damage)
    assert store.get("ab12") is None
    assert "corrupt" in said[0]
    store.put("ab12", entry())
    assert store.get("ab12") is not None


def test_a_truncated_entry_is_made_anew(tmp_path: Path) -> None:
    store = EntryStore(tmp_path, "teacher", 10**6)
    store.put("ab12", entry())
    whole = store._path("ab12").read_bytes()
    for length in range(0, len(whole), 16):
        store._path("ab12").write_bytes(whole[:length])
        assert store.get("ab12") is None


def test_the_bound_is_for_all_teachers(tmp_path: Path, said: list[str]) -> None:
    first = EntryStore(tmp_path, "first", 3000)
    assert first.put("ab00", entry(size=500))
    second = EntryStore(tmp_path, "second", 3000)
    assert second.put("ab01", entry(size=500))
    assert not second.put("ab02", entry(size=500))
    assert not second.put("ab03", entry(size=1)), "what is full stays full"
    assert len(said) == 1
    assert "limit of 3e-06 GB" in said[0]
    assert "max_gb" in said[0]
    assert "first" in said[0]
    assert second.get("ab01") is not None
    # The first one has counted when it was alone.
    assert not first.put("ab04", entry(size=500))


def test_a_full_disk_stops_storing_and_not_training(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EntryStore(tmp_path, "teacher", 10**6)

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    assert not store.put("ab12", entry())
    assert store.full
    assert "No space left" in said[0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write the teacher cache(.|\n)*cache\.dir"):
        EntryStore(tmp_path / "file", "teacher", 10**6)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "teacher" / "ab"
    folder.mkdir(parents=True)
    old, new = folder / "1.part", folder / "2.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    EntryStore(tmp_path, "teacher", 10**6)
    assert (old.exists(), new.exists()) == (False, True)


def _write(root: Path, seed: int, ready: Any) -> None:
    store = EntryStore(root, "teacher", 10**9)
    ready.set()
    for turn in range(10**6):
        store.put(f"{turn % 50:02d}{seed % 2}", entry(turn % 50, size=20_000))


def test_killed_writers_leave_no_half_entry(tmp_path: Path) -> None:
    """Four processes write the same and different keys; all are killed in the midst of it."""
    context = multiprocessing.get_context("fork")
    events = [context.Event() for _ in range(4)]
    writers = [context.Process(target=_write, args=(tmp_path, i, events[i])) for i in range(4)]
    for writer in writers:
        writer.start()
    assert all(event.wait(60) for event in events)
    store = EntryStore(tmp_path, "teacher", 10**9)
    for writer in writers:
        time.sleep(0.3)
        assert writer.pid is not None
        os.kill(writer.pid, 9)
        writer.join()
    assert len(store) > 20
    for turn in range(50):
        for seed in range(2):
            found = store.get(f"{turn:02d}{seed}")
            assert found is None or torch.equal(found["a"], entry(turn, size=20_000)["a"])
    assert len(store) > 20, "none was found damaged"
