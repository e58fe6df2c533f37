from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmkd.cli.publish import main

from ..conftest import build, tiny_atss


@pytest.mark.parametrize("full", [False, True])
def test_keeps_weights_and_classes_only(tmp_path: Path, full: bool) -> None:
    model = build(tiny_atss())
    meta = {"dataset_meta": {"classes": ("a", "b", "c")}, "cfg": "secret paths", "epoch": 3}
    torch.save({"meta": meta, "state_dict": model.state_dict(), "optimizer": {}}, tmp_path / "in.pth")
    out = tmp_path / "out.pth"
    assert main([str(tmp_path / "in.pth"), str(out), *(["--full-precision"] if full else [])]) == 0
    published = torch.load(out)
    assert published.keys() == {"meta", "state_dict"}
    assert published["meta"] == {"dataset_meta": {"classes": ("a", "b", "c")}}
    dtypes = {value.dtype for value in published["state_dict"].values()}
    assert dtypes == {torch.float32 if full else torch.float16, torch.int64}
    model.load_state_dict(published["state_dict"])


def test_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": 1}, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]) == 2
    assert "no `state_dict`" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
