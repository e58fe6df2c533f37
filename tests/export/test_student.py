from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmkd.errors import UserError
from mmkd.export import load_student

from .conftest import TEACHER, Detector


def test_the_config_beside_a_checkpoint_is_found(detector: Detector, tmp_path: Path) -> None:
    shutil.copy(TEACHER, tmp_path / "student.pth")
    detector[1].dump(tmp_path / "student.py")
    model, cfg, classes = load_student(str(tmp_path / "student.pth"))
    assert classes == detector[2] == ("Platelets", "RBC", "WBC")
    assert cfg.model == detector[1].model
    assert not model.training
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in detector[0].state_dict().items())


def test_classes_without_names(detector: Detector, tmp_path: Path) -> None:
    torch.save({"state_dict": detector[0].state_dict()}, tmp_path / "student.pth")
    cfg = detector[1].copy()
    cfg.test_dataloader = cfg.train_dataloader = None
    cfg.dump(tmp_path / "student.py")
    with pytest.raises(UserError, match="classes have no names"):
        load_student(str(tmp_path / "student.pth"))
