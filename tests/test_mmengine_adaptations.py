from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from mmkd import mmengine_adaptations as adaptations

from .conftest import ROOT


def python(*arguments: str, cwd: Path = ROOT) -> list[str]:
    """The lines that a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.slow
def test_what_the_import_changes() -> None:
    changed = {
        "mmengine.runner.checkpoint.CheckpointLoader._schemes",
        "mmengine.config.utils.MODULE2PACKAGE",
        "mmengine.config.utils.PKG2PROJECT",  # the same table
        "mmengine.registry.registry.MODULE2PACKAGE",  # the same table
    }
    if adaptations.torch_loads_weights_only():
        changed.add("torch._weights_only_unpickler._marked_safe_globals_set")
    assert set(python("-m", "tests.changed_by_import")) == changed


new_torch = pytest.mark.skipif(
    not adaptations.torch_loads_weights_only(), reason="torch before 2.6 reads any pickle by default"
)


@new_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_reads_what_mmengine_writes(tmp_path: Path, zipped: bool) -> None:
    hub = MessageHub.get_instance("adaptations")
    hub.update_scalar("train/loss", 1.5)
    hub.update_info("best_score", np.float64(0.5))
    content = {"message_hub": hub.state_dict(), "flags": np.array([True]), "names": np.array(["a"])}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)
    history = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 1.5
    assert history.statistics("max") == 1.5
    assert loaded["message_hub"]["runtime_info"]["best_score"] == 0.5
    assert (loaded["flags"].all(), loaded["names"][0]) == (True, "a")


def test_numpy_of_both_module_names_is_allowed() -> None:
    allowed = {
        name
        for entry in adaptations.mmengine_safe_globals()
        if isinstance(entry, tuple)
        for name in entry[1:]
    }
    assert {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"} <= allowed


def test_mmengine_reads_checkpoints_by_mmkd() -> None:
    loaders = {
        CheckpointLoader._get_checkpoint_loader(name) for name in ("a.pth", "https://h/a.pth", "s3://a")
    }
    assert {loader.__module__ for loader in loaders} == {"mmkd.checkpoints.loaders"}
    others = [f for f in CheckpointLoader._schemes.values() if f.__module__ != "mmkd.checkpoints.loaders"]
    assert others == [], "each of mmengine's own reads with torch.load"


@pytest.mark.parametrize(("version", "expected"), [("2.5.1", False), ("2.6.0", True), ("2.13.0+cpu", True)])
def test_torch_version(monkeypatch: pytest.MonkeyPatch, version: str, expected: bool) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert adaptations.torch_loads_weights_only() is expected


def test_does_nothing_on_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.1.2")
    monkeypatch.delattr(torch.serialization, "add_safe_globals", raising=False)
    adaptations.allow_mmengine_checkpoints()


def test_getattr_itself_is_not_allowed() -> None:
    entries = adaptations.mmengine_safe_globals()
    assert builtins.getattr not in entries
    assert all(entry[0] is not builtins.getattr for entry in entries if isinstance(entry, tuple))


@pytest.mark.slow
def test_recipes_by_package_name_are_registered_without_advice(tmp_path: Path) -> None:
    """mmengine calls `mmkd.utils.register_all_modules` for the scope of such a config."""
    (tmp_path / "c.py").write_text("_base_ = ['mmkd::bccd/student.py']\n")
    code = (
        "import mmkd\nfrom mmengine.config import Config\nfrom mmengine.registry import MODELS\n"
        f"cfg = Config.fromfile({str(tmp_path / 'c.py')!r})\nprint(type(MODELS.build(cfg.model)).__name__)\n"
    )
    said = python("-c", code, cwd=tmp_path)
    assert said[-1] == "ATSS"
    assert "not installed" not in "".join(said)
