from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.fileio import LocalBackend, dump, get_file_backend, register_backend
from mmengine.runner import save_checkpoint

from mmkd import UserError
from mmkd.cli.common import run
from mmkd.durable import DurableLocalBackend, use_durable_files
from mmkd.hooks import MetricsFileHook, StopHook

from .hooks.toy import toy_runner


@pytest.fixture
def stock() -> Iterator[None]:
    """mmengine's own files, and afterwards what there was before."""
    before = type(get_file_backend("a"))
    register_backend("local", LocalBackend, force=True, prefixes="")
    yield
    register_backend("local", before, force=True, prefixes="")


def test_mmengine_writes_by_it(tmp_path: Path, stock: None) -> None:
    dump({}, tmp_path / "a.json")  # for which mmengine keeps a backend
    (tmp_path / "a.json").unlink()
    use_durable_files()
    assert isinstance(get_file_backend(str(tmp_path), enable_singleton=True), DurableLocalBackend)
    assert isinstance(get_file_backend(str(tmp_path)), DurableLocalBackend)
    save_checkpoint({"state_dict": {"a": torch.ones(2)}}, str(tmp_path / "new" / "a.pth"))
    assert torch.load(tmp_path / "new" / "a.pth")["state_dict"]["a"].tolist() == [1, 1]
    get_file_backend(str(tmp_path)).put_text("Gruß", tmp_path / "text")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "Gruß"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.pth", "new", "text"]


@pytest.mark.parametrize(
    ("hooks", "checkpoint", "kind"),
    [
        ([], "CheckpointHook", LocalBackend),
        ([], "mmdet.DurableCheckpointHook", DurableLocalBackend),
        ([StopHook()], "CheckpointHook", DurableLocalBackend),
        ([MetricsFileHook()], "CheckpointHook", DurableLocalBackend),
    ],
)
def test_hooks_switch_it_on(
    tmp_path: Path, stock: None, hooks: list[Any], checkpoint: str, kind: type[LocalBackend]
) -> None:
    written = []

    def write(backend: LocalBackend, content: bytes, path: Any) -> None:
        written.append(type(backend))
        Path(path).write_bytes(content)

    with pytest.MonkeyPatch.context() as monkeypatch:
        for each in (LocalBackend, DurableLocalBackend):
            monkeypatch.setattr(each, "put", write)
        saving = {"checkpoint": {"type": checkpoint, "interval": 1}}
        toy_runner(tmp_path, *hooks, epochs=1, default_hooks=saving).train()
    assert (tmp_path / "epoch_1.pth").is_file()
    assert written == [kind]


def test_tools_switch_it_on(stock: None) -> None:
    assert run(lambda: None) == 0
    assert isinstance(get_file_backend("a"), DurableLocalBackend)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    backend, path = DurableLocalBackend(), tmp_path / "a.pth"
    backend.put(b"old", path)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(UserError, match=r"Cannot write \S*a\.pth[\s\S]*No space left[\s\S]*MiB"):
            backend.put(b"new", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    backend.put(b"new", path)
    assert path.read_bytes() == b"new"


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    DurableLocalBackend().put(b"1", tmp_path / "a")
    assert calls == ["fsync", "replace", "fsync"], "content, name, folder"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory|File exists"):
        DurableLocalBackend().put(b"", tmp_path / "file" / "deeper" / "a.pth")
