"""Creating a sweep, and what becomes of its runs; with the real agent in `tests/test_wandb.py`."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from mmkd.errors import UserError
from mmkd.sweeps import read_sweep
from mmkd.sweeps.hosted import HostedSweep

from ..wandb_server import WandbServer


def hosted(tmp_path: Path, code: str) -> HostedSweep:
    program = tmp_path / "program.py"
    program.write_text(code)
    content = {
        "program": str(program),
        "method": "random",
        "metric": {"name": "x", "goal": "maximize"},
        "parameters": {"lr": {"values": [1]}},
        "command": [sys.executable, "${program}", "config.py", "${args_no_hyphens}"],
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.dump(content))
    return HostedSweep(read_sweep(file))


@pytest.fixture
def _parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.yaml").write_text("lr: {value: 5}")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "p.yaml"))
    monkeypatch.setenv("WANDB_SERVICE", "the agent's")


def agent(monkeypatch: pytest.MonkeyPatch, runs: int) -> None:
    """W&B's agent, reduced to calling a function and outliving its errors."""

    def run(_: str, function: Any, **__: Any) -> None:
        for _run in range(runs):
            try:
                function()
            except Exception as error:
                print(error)

    monkeypatch.setattr(wandb, "agent", run)


def test_no_server_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "sweep", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(UserError, match=r"Cannot create the W&B sweep[\s\S]*refused[\s\S]*--local"):
        hosted(tmp_path, "").create()


def test_creates_the_sweep_as_the_file_says(
    tmp_path: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in wandb_server.environment().items():
        monkeypatch.setenv(key, value)
    sweep = hosted(tmp_path, "")
    assert sweep.create() == "sweep0"
    sent = wandb_server.sweeps["sweep0"].config
    written = yaml.safe_load(sweep.sweep.path.read_text())
    assert {key: sent[key] for key in written} == written
    wandb.teardown()


@pytest.mark.usefixtures("_parameters")
def test_a_run_is_a_process_with_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent(monkeypatch, 1)
    out = tmp_path / "out.txt"
    code = f"""
import os, sys
with open({str(out)!r}, "w") as file:
    print(sys.argv[1:], "WANDB_SERVICE" in os.environ, file=file)
"""
    hosted(tmp_path, code).run("sweep", 1)
    assert out.read_text() == "['config.py', 'lr=5'] False\n"


@pytest.mark.usefixtures("_parameters")
def test_only_failures_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent(monkeypatch, 2)
    with pytest.raises(UserError, match="none of the 2 runs succeeded.*exit code 3"):
        hosted(tmp_path, "import sys; sys.exit(3)").run("sweep", 2)


@pytest.mark.usefixtures("_parameters")
def test_an_exception_of_the_agent_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's agent raises it in the thread of the run, from another one."""

    def stop(_: str, function: Any, **__: Any) -> None:
        of_the_run = ctypes.c_ulong(threading.get_ident())

        def interrupt() -> None:
            while not started.exists():
                time.sleep(0.05)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(of_the_run, ctypes.py_object(KeyboardInterrupt))

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            function()

    monkeypatch.setattr(wandb, "agent", stop)
    started, ended = tmp_path / "started", tmp_path / "ended"
    code = f"""
import pathlib, signal, sys
def stop(*_):
    pathlib.Path({str(ended)!r}).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({str(started)!r}).touch()
while True:
    signal.pause()
"""
    hosted(tmp_path, code).run("sweep", 1)
    assert ended.exists()
