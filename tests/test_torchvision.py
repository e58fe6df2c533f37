from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmkd import torchvision

from .conftest import ROOT

UNFIT = 'raise RuntimeError("operator torchvision::nms does not exist")'


@pytest.mark.parametrize(
    ("of_torch", "wanted"),
    [("2.1.2", "0.16.2"), ("2.5.1+cu121", "0.20.1"), ("2.13.0+cpu", "0.28.0"), ("2.10.0a0+git1", "0.25.0")],
)
def test_each_torch_has_its_own(monkeypatch: pytest.MonkeyPatch, of_torch: str, wanted: str) -> None:
    monkeypatch.setattr(torch, "__version__", of_torch)
    assert torchvision.requirement() == f"torchvision=={wanted}"


@pytest.mark.parametrize(
    ("of_torch", "index"), [("2.13.0", ""), ("2.13.0+cpu", "cpu"), ("2.13.0+cu126", "cu126")]
)
def test_its_build_is_that_of_torch(monkeypatch: pytest.MonkeyPatch, of_torch: str, index: str) -> None:
    monkeypatch.setattr(torch, "__version__", of_torch)
    index = index and f" --index-url https://download.pytorch.org/whl/{index}"
    assert torchvision.remedy() == f"pip install torchvision==0.28.0{index}"


@pytest.mark.slow
def test_an_unfit_one_stops_neither_mmkd_nor_a_run(tmp_path: Path) -> None:
    """In a process of its own, which logs the environment as mmengine's Runner does after mmkd's tools."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(UNFIT)
    script = """
        import mmkd.torchvision
        from mmengine.runner import CheckpointLoader
        from mmengine.utils.dl_utils import collect_env

        mmkd.torchvision.survive()
        assert "PyTorch" in collect_env()
        CheckpointLoader.load_checkpoint("torchvision://resnet18.default")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "if True:" + script],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = done.stdout + done.stderr
    assert "cannot import torchvision, continuing without it (RuntimeError: operator" in told
    assert f"Remedy: {torchvision.remedy()}" in told
    assert f"needs the torchvision that belongs to torch {torch.__version__}" in done.stderr
    assert f"{torchvision.remedy()}, or give the file's URL" in done.stderr
