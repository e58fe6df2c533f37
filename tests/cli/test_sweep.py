from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmkd.cli import sweep
from mmkd.errors import UserError

from ..conftest import ROOT

SHIPPED = str(ROOT / "configs/sweeps/atss_bayes.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--local", "--project", "p"], "--project, --entity, --sweep-id do not go with --local"),
        (["--resume"], "--work-dir, --resume, --seed, --jobs go with --local"),
        (["--jobs", "2"], "go with --local"),
    ],
)
def test_options_of_the_other_form(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        sweep.parse_args([SHIPPED, "--count", "1", *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("joined", [None, "e/p/s"])
def test_hosted(monkeypatch: pytest.MonkeyPatch, joined: str | None) -> None:
    import mmkd.sweeps.hosted

    calls: list[Any] = []

    class Fake:
        def __init__(self, *arguments: Any) -> None:
            calls.append(arguments[1:])

        def create(self) -> str:
            return "new"

        def run(self, *arguments: Any) -> None:
            calls.append(arguments)

    monkeypatch.setattr(mmkd.sweeps.hosted, "HostedSweep", Fake)
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)
    join = ["--sweep-id", joined] if joined else []
    assert sweep.main([SHIPPED, "--count", "3", "--project", "p", *join]) == 0
    assert calls == [("p", None), (joined or "new", 3)]


def test_hosted_needs_wandb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise UserError("no wandb")

    monkeypatch.setattr(sweep, "check_wandb", missing)
    assert sweep.main([SHIPPED, "--count", "1"]) == 2
    assert "no wandb" in capsys.readouterr().err


def test_an_ignored_s_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path(SHIPPED).read_text())
    content["early_terminate"]["s"] = 2
    (tmp_path / "s.yaml").write_text(yaml.dump(content))
    monkeypatch.setattr(sweep, "sweep_locally", lambda *_: None)
    assert sweep.main([str(tmp_path / "s.yaml"), "--count", "1", "--local"]) == 0
    assert "`s` requires max_iter" in capsys.readouterr().out
