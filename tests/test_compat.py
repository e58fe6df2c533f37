from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmkd import compat


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


def test_classes_in_a_config_of_text_get_their_names(tmp_path: Path) -> None:
    """mmengine itself writes ``<class …>`` and fails to read that."""
    (tmp_path / "c.py").write_text(
        "_base_ = ['mmkd::bccd/student.py']\n"
        "from mmdet.models import ATSS\nfrom torch.nn import BatchNorm2d\n"
        "model = dict(type=ATSS, backbone=dict(norm_cfg=dict(type=BatchNorm2d)))\n"
    )
    cfg = compat.load_config(tmp_path / "c.py")
    assert cfg.model.type == "ATSS"
    assert cfg.model.backbone.norm_cfg.type == "torch.nn.modules.batchnorm.BatchNorm2d"
    assert "ATSS" not in cfg
    cfg.dump(tmp_path / "again.py")
    assert compat.load_config(tmp_path / "again.py").to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mmkd::bccd/kd", "mmkd::bccd/kd.py"),
        ("mmkd::bccd/kd_featurs.py", "mmkd::bccd/kd_features.py"),
        ("mmkd::card/student_160.py", "mmkd::cards/student_160.py"),
        ("mmdet::atss/atss_r50_fpn_1x_coc.py", "mmdet::atss/atss_r50_fpn_1x_coco.py"),
        ("configs/bccd/kd", "configs/bccd/kd.py"),
        ("configs/bccd/studnt.py", "configs/bccd/student.py"),
        ("mmkd::xyz.zzz", None),
        ("nowhere/at_all.py", None),
    ],
)
def test_the_config_that_was_meant(name: str, meant: str | None) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        compat.load_config(name)
    assert compat.similar_config(raised.value) == meant
