from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmkd.errors import UserError
from mmkd.export import export_onnx

from .conftest import Detector


def test_missing_package(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"Export needs onnx.(.|\n)*mmkd\[export\]"):
        export_onnx(detector[0], tmp_path / "out.onnx", "abc")
