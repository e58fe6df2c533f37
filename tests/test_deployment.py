from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmkd.deployment import write_deployable
from mmkd.errors import UserError


def test_weights_and_classes_alone(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "steps": torch.tensor(3)}
    content = {
        "meta": {"dataset_meta": {"classes": ("x",)}, "cfg": "…"},
        "state_dict": weights,
        "optimizer": {},
    }
    torch.save(content, tmp_path / "in.pth")
    for half in (False, True):
        assert write_deployable(str(tmp_path / "in.pth"), tmp_path / "out.pth", half) == 2
        written = torch.load(tmp_path / "out.pth")
        assert written.keys() == {"meta", "state_dict"}
        assert written["meta"] == {"dataset_meta": {"classes": ("x",)}}
        assert written["state_dict"]["a"].dtype == (torch.float16 if half else torch.float32)
        assert written["state_dict"]["steps"].dtype == torch.int64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.pth"]


def test_no_weights(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="no `state_dict`"):
        write_deployable(str(tmp_path / "in.pth"), tmp_path / "out.pth", half=False)


def test_a_name_that_promises_a_hash(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": None}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="student-985f7bd0.pth promises"):
        write_deployable(str(tmp_path / "in.pth"), tmp_path / "student-985f7bd0.pth", half=False)
    assert write_deployable(str(tmp_path / "in.pth"), tmp_path / "student.pth", half=False) == 1
