from __future__ import annotations

import builtins
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from mmkd import compat

new_torch = pytest.mark.skipif(
    not compat.torch_loads_weights_only(), reason="torch before 2.6 reads any pickle by default"
)


def mmengine_like() -> dict[str, object]:
    hub = MessageHub.get_instance("compat")
    hub.update_scalar("train/loss", 1.5)
    hub.update_info("best_score", np.float64(0.5))
    return {"state_dict": {"w": torch.ones(2)}, "message_hub": hub.state_dict(), "flags": np.array([True])}


@new_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_reads_what_mmengine_writes(tmp_path: Path, zipped: bool) -> None:
    hub = MessageHub.get_instance("compat")
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
        name for entry in compat.mmengine_safe_globals() if isinstance(entry, tuple) for name in entry[1:]
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


def test_recipes_by_package_name_are_registered_without_advice(tmp_path: Path) -> None:
    """mmengine calls `mmkd.utils.register_all_modules` for the scope of such a config."""
    (tmp_path / "c.py").write_text("_base_ = ['mmkd::bccd/student.py']\n")
    code = (
        "import mmkd\nfrom mmengine.config import Config\nfrom mmengine.registry import MODELS\n"
        f"cfg = Config.fromfile({str(tmp_path / 'c.py')!r})\nprint(type(MODELS.build(cfg.model)).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "ATSS"
    assert "not installed" not in done.stdout + done.stderr
