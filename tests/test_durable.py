from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.runner import save_checkpoint

from mmkd import UserError
from mmkd.durable import DurableLocalBackend


def test_mmengine_writes_by_it(tmp_path: Path) -> None:
    assert isinstance(get_file_backend(str(tmp_path)), DurableLocalBackend)
    save_checkpoint({"state_dict": {"a": torch.ones(2)}}, str(tmp_path / "new" / "a.pth"))
    assert torch.load(tmp_path / "new" / "a.pth")["state_dict"]["a"].tolist() == [1, 1]
    get_file_backend(str(tmp_path)).put_text("Gruß", tmp_path / "text")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "Gruß"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.pth", "new", "text"]


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
        with pytest.raises(UserError, match=r"a\.pth cannot be written[\s\S]*No space left[\s\S]*MiB"):
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
