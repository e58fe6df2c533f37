from __future__ import annotations

from pathlib import Path

import pytest

from mmkd.errors import UserError
from mmkd.sweeps.agent import in_hosted_sweep, in_sweep, parameters, run_id


def test_outside_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "of a user")
    assert not in_sweep()
    assert run_id() is None
    assert parameters() == {}


def test_in_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMKD_SWEEP", "local")
    assert in_sweep()
    assert not in_hosted_sweep()
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert in_hosted_sweep()
    assert run_id() == "r"


def test_parameters_keep_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "wandb_version: 1\n"
        "a.b: {value: 1.0e-05}\nflag: {value: false}\nname: {value: 'two words'}\nlist: {value: [1, 2]}\n"
    )
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    assert parameters() == {"a.b": 1e-5, "flag": False, "name": "two words", "list": [1, 2]}


@pytest.mark.parametrize("content", [None, "a: 1", "- 1", "a: ["])
def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    file = tmp_path / "p.yaml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    with pytest.raises(UserError, match="WANDB_SWEEP_PARAM_PATH"):
        parameters()
