from __future__ import annotations

import errno
import multiprocessing.queues
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd import StopHook, UserError
from mmkd.cli.common import run
from mmkd.cli.failures import keep_state
from mmkd.hooks import ReproducibleHook, ResumeHook

from ..conftest import save_teacher, tiny_teacher
from ..hooks.kd_runner import kd_model, kd_runner
from ..hooks.toy import Call, ToyMetric, toy_runner

SAVING = {"checkpoint": {"type": "mmdet.DurableCheckpointHook", "interval": 1}}


class Files:
    """Samples that are files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for index in range(10):
            (folder / str(index)).write_text(str(index))

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, float]:
        if (self.folder / "kill").exists() and index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"sample": float((self.folder / str(index)).read_text())}


def runner(folder: Path, data: Files, *hooks: Any, workers: int = 0, **options: Any) -> Any:
    loader = {
        "batch_size": 2,
        "dataset": data,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "collate_fn": {"type": "default_collate"},
        "num_workers": workers,
    }
    own = [ReproducibleHook(), StopHook(), ResumeHook()]
    return toy_runner(folder, *hooks, *own, train_dataloader=loader, default_hooks=SAVING, **options)


def train(runner: Any) -> None:
    """As the train tool does it."""
    try:
        runner.train()
    except Exception as error:
        raise keep_state(runner, error) from error


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    data = Files(tmp_path / "data")
    whole = runner(tmp_path / "whole", data)
    whole.train()
    lose = Call("before_train_epoch", 2, lambda _: (tmp_path / "data" / "4").unlink())
    first = runner(tmp_path / "run", data, lose, workers=workers)
    assert run(lambda: train(first)) == 2
    told = capsys.readouterr().err
    assert "mmkd: error: Cannot load training sample number 4." in told
    assert "Traceback" not in told.partition("mmkd: error")[2]
    assert 5 < first.iter < 10

    (tmp_path / "data" / "4").write_text("4")
    second = runner(tmp_path / "run", data, resume=True)
    second.train()
    assert first.model.seen + second.model.seen == whole.model.seen, "not one batch is lost"
    torch.testing.assert_close(second.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_a_worker_that_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Files(tmp_path / "data")
    kill = Call("before_train_epoch", 2, lambda _: (tmp_path / "data" / "kill").write_text(""))
    first = runner(tmp_path / "run", data, kill, workers=1)
    assert run(lambda: train(first)) == 2
    told = capsys.readouterr().err
    assert "mmkd: error: A data loader worker died." in told
    assert "DataLoader worker (pid" in told or "connection to the worker lost" in told
    (tmp_path / "data" / "kill").unlink()
    second = runner(tmp_path / "run", data, resume=True)
    second.train()
    assert second.iter == 15
    assert len(second.model.seen) <= 10, "at least the first epoch is kept"


def test_news_of_a_workers_death_that_break_into_the_saving(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises them from a signal handler, wherever the program is."""
    save, calls = StopHook.save_after_failure, []

    def interrupted(self: StopHook, runner: Any) -> Path | None:
        calls.append(1)
        if len(calls) == 1:
            try:
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
            except RuntimeError as error:
                raise SyntaxError("what mmengine makes of it") from error
        return save(self, runner)

    monkeypatch.setattr(StopHook, "save_after_failure", interrupted)
    data = Files(tmp_path / "data")
    lose = Call("before_train_epoch", 2, lambda _: (tmp_path / "data" / "4").unlink())
    assert run(lambda: train(runner(tmp_path / "run", data, lose))) == 2
    assert "found:    DataLoader worker (pid 1) is killed" in capsys.readouterr().err
    assert (tmp_path / "run" / "interrupted.pth").is_file()


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError])
def test_a_connection_to_a_worker_that_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    get, own = multiprocessing.queues.Queue.get, os.getpid()

    def broken(*args: Any, **options: Any) -> Any:
        if os.getpid() == own:
            raise kind("reset by peer")
        return get(*args, **options)

    monkeypatch.setattr(multiprocessing.queues.Queue, "get", broken)
    data = Files(tmp_path / "data")
    assert run(lambda: train(runner(tmp_path / "run", data, workers=1))) == 2
    assert f"connection to the worker lost ({kind.__name__})" in capsys.readouterr().err


def test_a_connection_of_another_kind_is_a_failure_with_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Any) -> None:
        raise ConnectionResetError("reset by peer")

    hook = Call("before_train_epoch", 1, broken)
    assert run(lambda: train(runner(tmp_path / "run", Files(tmp_path / "data"), hook))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_validation_keeps_the_training(tmp_path: Path) -> None:
    class Failing(ToyMetric):
        def process(self, data_batch: Any, data_samples: Any) -> None:
            raise RuntimeError("no metric")

    data = Files(tmp_path / "data")
    first = runner(tmp_path / "run", data, val_evaluator=[Failing()], epochs=1)
    with pytest.raises(RuntimeError, match="no metric"):
        train(first)
    validations = Call("after_val_epoch", 0, None)
    second = runner(tmp_path / "run", data, validations, resume=True, epochs=1)
    second.train()
    assert (second.model.seen, validations.count) == ([], 1)


def test_within_a_step_nothing_is_saved(tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def forward(self, *_: Any) -> Any:
            raise RuntimeError("in the model")

    first = runner(tmp_path / "run", Files(tmp_path / "data"), epochs=1)
    first.register_hook(Call("before_train_iter", 3, lambda runner: setattr(runner.model, "line", Broken())))
    with pytest.raises(RuntimeError, match="in the model"):
        train(first)
    assert not (tmp_path / "run" / "interrupted.pth").exists()


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file may grow no further: what EFBIG is to one, ENOSPC is to all."""
    toy_runner(tmp_path, default_hooks=SAVING, epochs=1).train()
    before = (tmp_path / "epoch_1.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        assert run(lambda: train(toy_runner(tmp_path, default_hooks=SAVING, epochs=1))) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = capsys.readouterr().err
    assert re.search(r"Cannot write \S*epoch_1.pth", told)
    assert "File too large" in told
    assert (tmp_path / "epoch_1.pth").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("number", "filename"),
    [(errno.EROFS, "/data/runs/run.log"), (errno.ENOSPC, None), (errno.EACCES, "/root/x")],
)
def test_a_place_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], number: int, filename: str | None
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), filename)

    assert run(fail) == 2
    told = capsys.readouterr().err
    assert f"mmkd: error: Cannot write or read {filename or 'a file'}." in told
    assert os.strerror(number) in told
    assert "Traceback" not in told


def test_a_missing_file_of_ours_is_a_failure_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        Path("/nowhere/at/all").read_text()

    assert run(fail) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_teachers_file_is_not_needed_once_it_is_read(tmp_path: Path) -> None:
    file = save_teacher(tmp_path / "teacher.pth", tiny_teacher())
    lose = Call("before_train_iter", 1, lambda _: os.unlink(file))
    kd_runner(tmp_path / "run", kd_model(file), lose, epochs=2).train()
    assert (tmp_path / "run" / "epoch_2.pth").is_file()
    with pytest.raises(UserError, match=r"not found[\s\S]*teacher\.pth"):
        kd_model(file)
