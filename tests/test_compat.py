from __future__ import annotations

import builtins
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from mmkd import compat
from mmkd.errors import UserError

new_torch = pytest.mark.skipif(
    not compat.torch_loads_weights_only(), reason="torch before 2.6 reads any pickle by default"
)


def mmengine_like() -> dict[str, object]:
    hub = MessageHub.get_instance("compat")
    hub.update_scalar("train/loss", 1.5)
    hub.update_info("best_score", np.float64(0.5))
    return {"state_dict": {"w": torch.ones(2)}, "message_hub": hub.state_dict(), "flags": np.array([True])}


@new_torch
def test_reads_what_mmengine_writes(tmp_path: Path) -> None:
    torch.save(mmengine_like(), tmp_path / "c.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "c.pth"), map_location="cpu")
    history = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 1.5
    assert history.statistics("max") == 1.5
    assert loaded["message_hub"]["runtime_info"]["best_score"] == 0.5


@new_torch
@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32", "float64", "U3"])
def test_reads_numpy_of_both_module_names(tmp_path: Path, dtype: str) -> None:
    value = {"array": np.ones(3, dtype), "scalar": np.ones(1, dtype)[0]}
    torch.save(value, tmp_path / "c.pth")
    assert compat.load_from_local(str(tmp_path / "c.pth"))["array"].dtype == np.dtype(dtype)
    allowed = {
        name for entry in compat.mmengine_safe_globals() if isinstance(entry, tuple) for name in entry[1:]
    }
    assert {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"} <= allowed


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


class ReadsAttribute:
    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, (self.owner, self.name)


@new_torch
@pytest.mark.parametrize("legacy", [False, True])
def test_refuses_code_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": RunsCode()}, "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="refused.*\n.*\n.*system.*\n.*add_safe_globals"):
        compat.load_from_local("evil.pth")
    assert not Path("executed").exists()


@new_torch
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HistoryBuffer, "__init__"),
        (HistoryBuffer, "__globals__"),
        (np.ndarray, "tofile"),
        (torch.Tensor, "min"),
    ],
)
def test_getattr_resolves_history_methods_only(tmp_path: Path, owner: object, name: str) -> None:
    with pytest.raises(ValueError, match="refused getattr"):
        compat._history_buffer_method(owner, name)
    if hasattr(owner, name):
        torch.save({"x": ReadsAttribute(owner, name)}, tmp_path / "evil.pth")
        with pytest.raises(UserError, match="refused"):
            compat.load_from_local(str(tmp_path / "evil.pth"))


@new_torch
def test_objects_of_other_classes_are_refused(tmp_path: Path) -> None:
    torch.save({"path": Path("x"), "state": np.array([None], dtype=object)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="refused"):
        compat.load_from_local(str(tmp_path / "c.pth"))
    torch.save({"state": np.array([None], dtype=object)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="refused.*\n.*\n.*ObjectDType"):
        compat.load_from_local(str(tmp_path / "c.pth"))


def test_history_method() -> None:
    assert compat._history_buffer_method(HistoryBuffer, "mean") is HistoryBuffer.mean


@new_torch
def test_a_user_who_trusts_the_file_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"x": ReadsAttribute(np.ndarray, "sum")}, tmp_path / "odd.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert compat.load_from_local(str(tmp_path / "odd.pth"))["x"] is np.ndarray.sum


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None, pickle.dumps([1])[:-1]])
def test_truncated_or_foreign_file(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        torch.save({"w": torch.randn(1000)}, tmp_path / "whole.pth")
        content = (tmp_path / "whole.pth").read_bytes()[:2000]
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        compat.load_from_local(str(tmp_path / "bad.pth"))


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "epoch_3.pth")
    with pytest.raises(UserError, match=r"in its folder: epoch_3\.pth"):
        compat.load_from_local(str(tmp_path / "epoch_4.pth"))
    with pytest.raises(UserError, match="no checkpoint in"):
        compat.load_from_local(str(tmp_path / "no" / "epoch_4.pth"))


@pytest.mark.parametrize(("version", "expected"), [("2.5.1", False), ("2.6.0", True), ("2.13.0+cpu", True)])
def test_torch_version(monkeypatch: pytest.MonkeyPatch, version: str, expected: bool) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert compat.torch_loads_weights_only() is expected


def test_does_nothing_on_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.1.2")
    monkeypatch.delattr(torch.serialization, "add_safe_globals", raising=False)
    compat.allow_mmengine_checkpoints()


@pytest.mark.parametrize("missing", ["mmengine", "mmcv", "mmdet", "mmcv.ops"])
def test_missing_package_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> object:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=rf"mmkd needs {missing}.*\n.*make install.*onedl"):
        compat.check_environment()


def test_unfit_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmdet

    monkeypatch.setattr(mmdet, "__version__", "2.28.0")
    with pytest.raises(ImportError, match=r"MMDetection 3\.x, but mmdet 2\.28\.0"):
        compat.check_environment()


def test_import_without_mmdet_ends_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "mmdet.py").write_text("raise ImportError('No module named mmdet')")
    result = subprocess.run(
        [sys.executable, "-c", "import mmkd"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(compat.__file__).parents[1]}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "ImportError: mmkd needs mmdet" in result.stderr
    assert "make install" in result.stderr.splitlines()[-1]


def test_getattr_itself_is_not_allowed() -> None:
    entries = compat.mmengine_safe_globals()
    assert builtins.getattr not in entries
    assert all(entry[0] is not builtins.getattr for entry in entries if isinstance(entry, tuple))
