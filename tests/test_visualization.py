from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from mmengine.config import Config

import mmkd.visualization
from mmkd import UserError, WandbBackend
from mmkd.cli import train

from .conftest import ROOT


class FakeRun:
    """Remembers what it is asked."""

    def __init__(self, finish_error: Exception | None = None, offline: bool = False) -> None:
        self.offline = offline
        self.rows: list[dict[str, Any]] = []
        self.updates: list[dict[str, Any]] = []
        self.code = self.finished = None
        self.config = SimpleNamespace(update=lambda values, **_: self.updates.append(values))
        self.settings = SimpleNamespace(sync_dir="/somewhere/run-1")
        self.finish_error = finish_error
        self.metrics: list[tuple[str, dict[str, Any]]] = []

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics.append((name, options))

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def log_code(self) -> None:
        self.code = True

    def finish(self, exit_code: int) -> None:
        if self.finish_error:
            raise self.finish_error
        self.finished = exit_code


@pytest.fixture
def inits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each wandb.init, which gives a `FakeRun`."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeRun:
        calls.append(arguments)
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    return calls


def test_nothing_is_started_until_needed(tmp_path: Path, inits: list[Any]) -> None:
    backend = WandbBackend(str(tmp_path))
    backend.close()
    assert inits == []
    backend.add_scalars({"loss": 1.0, "iter": 3})
    backend.add_scalars({"coco/bbox_mAP": 0.5, "time": 1.0, "data_time": 0.1})
    assert len(inits) == 1
    assert backend.run.rows == [
        {"loss": 1.0, "iter": 3},
        {"coco/bbox_mAP": 0.5, "val/time": 1.0, "val/data_time": 0.1},
    ]
    backend.exit_code = 138
    backend.close()
    assert backend.run.finished == 138


def test_config_without_code_unless_asked(tmp_path: Path, inits: list[Any]) -> None:
    for log_code in (False, True):
        backend = WandbBackend(str(tmp_path), log_code=log_code)
        backend.add_config(Config({"model": {"type": "ATSS"}}))
        assert backend.run.updates == [{"model": {"type": "ATSS"}}]
        assert bool(backend.run.code) == log_code


@pytest.mark.parametrize("cfg", [{"loss": "min"}, [{"name": "loss", "summary": "min"}]])
def test_metrics_of_the_config(tmp_path: Path, inits: list[Any], cfg: Any) -> None:
    backend = WandbBackend(str(tmp_path), define_metric_cfg=cfg)
    assert ("loss", {"summary": "min"}) in [
        (options.pop("name", name), options) for name, options in backend.run.metrics
    ]


def test_a_run_with_an_id_goes_on(
    tmp_path: Path, inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _ = WandbBackend(str(tmp_path)).run
    _ = WandbBackend(str(tmp_path), init_kwargs={"id": "mine", "project": "p"}).run
    monkeypatch.setenv("WANDB_RUN_ID", "the agent's")
    _ = WandbBackend(str(tmp_path)).run
    assert [call.get("resume") for call in inits] == [None, "allow", "allow"]
    assert inits[1]["project"] == "p"
    assert all(call["allow_val_change"] for call in inits)


class ApiError(Exception):
    """As wandb's, whose answer tells whether anybody was there."""

    def __init__(self, status: int | None) -> None:
        self.response = None if status is None else SimpleNamespace(http_status=status)


@pytest.mark.parametrize("kind", [wandb.errors.CommError, wandb.errors.AuthenticationError])
def test_unreachable_goes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: Any
) -> None:
    def init(mode: str = "online", **_: Any) -> FakeRun:
        if mode == "online":
            raise kind("timed out\nand more") from ApiError(None)
        return FakeRun(offline=True)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(mmkd.visualization, "print_log", lambda message, *_, **__: print(message))
    assert isinstance(WandbBackend(str(tmp_path)).run, FakeRun)
    out = capsys.readouterr().out
    assert "Cannot reach W&B (timed out)" in out
    assert re.search(r"wandb sync \S*somewhere/run-1", out)


def test_an_upload_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun(TimeoutError()))
    monkeypatch.setattr(mmkd.visualization, "print_log", lambda message, *_, **__: print(message))
    backend = WandbBackend(str(tmp_path))
    backend.add_scalars({"iter": 1})
    backend.close()
    assert "upload the run later with: wandb sync --include-online" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (wandb.errors.AuthenticationError, None),
        (wandb.errors.AuthenticationError, ApiError(401)),
        (wandb.errors.UsageError, None),
    ],
)
def test_a_refusal_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, cause: ApiError | None
) -> None:
    def init(**_: Any) -> FakeRun:
        raise kind("bad key") from cause

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"bad key[\s\S]*WANDB_MODE=offline"):
        _ = WandbBackend(str(tmp_path)).run


def test_a_lost_process_is_mentioned_once(
    tmp_path: Path, inits: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mmkd.visualization, "print_log", lambda message, *_, **__: print(message))
    backend = WandbBackend(str(tmp_path))
    backend.add_scalars({"iter": 1})

    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(backend.run, "log", lost)
    backend.add_scalars({"iter": 2})
    backend.add_config(Config({}))
    backend.close()
    assert capsys.readouterr().out.count("W&B fails (ConnectionResetError: Connection lost)") == 1
    assert backend.run.finished is None


@pytest.mark.parametrize(("found", "said"), [("0.27.2", "wandb 0.27.2"), (None, "no wandb")])
def test_missing_or_old_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str | None, said: str
) -> None:
    def version(_: str) -> str:
        if found is None:
            raise mmkd.visualization.PackageNotFoundError
        return found

    monkeypatch.setattr(mmkd.visualization, "version", version)
    with pytest.raises(UserError, match=rf"{said}\n.*pip install"):
        WandbBackend(str(tmp_path))


@pytest.mark.slow
def test_tensorboard_gets_each_loss_and_metric(tmp_path: Path) -> None:
    """By the lines of docs/sweeps.md."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    line = re.search(r"^visualizer = .*TensorboardVisBackend.*$", page, re.MULTILINE)
    assert line
    small = "".join(
        f"{part}_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=4))\n"
        for part in ("train", "val", "test")
    )
    config = tmp_path / "kd_tensorboard.py"
    config.write_text(
        f"_base_ = ['mmkd::bccd/kd.py']\n{line[0]}\n{small}"
        "train_cfg = dict(max_epochs=1)\ndefault_hooks = dict(logger=dict(interval=1))\n"
        "model = dict(test_cfg=dict(score_thr=0.0))\n"  # mmdet has no metric where nothing is found
    )
    assert train.main([str(config), "--work-dir", str(tmp_path / "run")]) == 0
    (events,) = (tmp_path / "run").glob("*/vis_data/events.out.tfevents.*")
    found = accumulators.EventAccumulator(str(events)).Reload()
    assert {"loss_cls", "loss_kd_cls", "lr", "coco/bbox_mAP"} <= set(found.Tags()["scalars"])
    (scalar,) = found.Scalars("loss_kd_cls")
    assert scalar.value > 0
