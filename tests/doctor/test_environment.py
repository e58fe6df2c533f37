from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmkd.doctor.environment import examine_environment, versions

from . import bccd


def by_name(setup: object) -> dict[str, str]:
    return {finding.what: finding.level for finding in examine_environment(setup)}  # type: ignore[arg-type]


def test_here(tmp_path: Path) -> None:
    setup = bccd.setup(lambda cfg: cfg.update(work_dir=str(tmp_path / "a/b")))
    found = by_name(setup)
    assert (found["versions"], found["mmcv's operators"], found["work dir"]) == ("ok", "ok", "ok")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("torch", "2.0.1", "error"),
        ("torch", "2.1.0+cu118", None),
        ("torch", "2.13.1+cpu", None),
        ("torch", "2.99.0", "warning"),
        ("numpy", "1.24.4", "error"),
        ("mmengine", "0.10.3", "error"),
        ("mmdet", "4.0.0", "error"),
        ("python", "3.13.1", "error"),
        ("python", "3.12.9", None),
        ("mmkd", "0.0.1", None),
    ],
)
def test_versions(name: str, version: str, level: str | None) -> None:
    *found, last = versions({name: version})
    assert [finding.level for finding in found] == ([level] if level else [])
    assert last.found == f"{name} {version}"


def test_work_dir_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    setup = bccd.setup(lambda cfg: cfg.update(work_dir=str(tmp_path / "file/work")))
    assert by_name(setup)["work dir"] == "error"


def test_operators_that_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcv.ops.nms", lambda *_: 1 / 0)
    assert by_name(bccd.setup())["mmcv's operators"] == "error"


def test_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setup = bccd.setup(lambda cfg: cfg.visualizer.update(vis_backends=[{"type": "WandbBackend"}]))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert by_name(setup)["Weights & Biases"] == "warning"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert by_name(setup)["Weights & Biases"] == "ok"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password none\n")
    (tmp_path / "netrc").chmod(0o600)
    assert by_name(setup)["Weights & Biases"] == "ok"
    monkeypatch.setenv("NETRC", str(tmp_path / "nothere"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert by_name(setup)["Weights & Biases"] == "ok"
    assert "Weights & Biases" not in by_name(bccd.setup())


def test_every_package_is_looked_at() -> None:
    (text,) = (finding.found for finding in examine_environment(bccd.setup()) if finding.what == "versions")
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in text
    for name in ("torch", "numpy", "mmengine", "mmcv", "mmdet", "mmkd"):
        assert f"{name} " in text
