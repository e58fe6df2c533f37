from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.logging import MMLogger

from mmkd.terminal import short_output, silence

# As a module of a library would say it.
SAYS = """
import warnings
from mmengine.logging import print_log
def says(logger):
    print("loading annotations", "into memory...")
    print_log("Config:", "current")
    print_log("printed")
    logger.info("Epoch(train)")
    logger.warning("alias of another")
    logger.error("cannot go on")
    warnings.warn("is deprecated", DeprecationWarning)
"""


def says(module: str, logger: MMLogger) -> None:
    names = {"__name__": module}
    exec(SAYS, names)
    names["says"](logger)  # type: ignore[operator]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    before = dict(MMLogger._instance_dict)
    yield tmp_path / "run.log"
    for logger in MMLogger._instance_dict.values():
        if logger.log_file and logger.log_file.startswith(str(tmp_path)):
            logger.handlers[-1].close()
    MMLogger._instance_dict.clear()
    MMLogger._instance_dict.update(before)


@pytest.mark.filterwarnings("always")
def test_libraries_go_to_the_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with short_output() as terminal:
        print("before there is a log")
        exec("print('early')", {"__name__": "pycocotools.coco"})
        logger = MMLogger.get_instance(str(log), log_file=str(log))
        says("mmdet.datasets.coco", logger)
        assert terminal.hidden == 2
    assert capsys.readouterr().out == "before there is a log\nerror: cannot go on\n"
    told = log.read_text()
    for line in ("early", "loading annotations into memory...", "Config:", "printed", "Epoch(train)"):
        assert line in told
    assert "WARNING - alias of another" in told
    assert "DeprecationWarning: is deprecated" in told


@pytest.mark.filterwarnings("always")
def test_what_others_say_is_shown(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with short_output() as terminal:
        logger = MMLogger.get_instance(str(log), log_file=str(log))
        says("mmkd.hooks.mine", logger)
        says("users_module", logger)
        assert terminal.hidden == 2, "Python's own warnings"
    shown = capsys.readouterr().out.splitlines()
    mine = ["loading annotations into memory...", "Config:", "printed", "Epoch(train)"]
    assert shown[:4] == mine
    assert "warning: alias of another" in shown
    assert shown.count("error: cannot go on") == 2
    assert log.read_text().count("INFO - Config:") == 2


def test_all_is_as_before_afterwards(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = MMLogger.get_instance(f"{log} old")
    handlers, make, stdout = list(old.handlers), MMLogger.__init__, sys.stdout
    with contextlib.suppress(ValueError), short_output():
        new = MMLogger.get_instance(str(log), log_file=str(log))
        print("a line without an end", end="")
        raise ValueError
    assert (old.handlers, MMLogger.__init__, sys.stdout) == (handlers, make, stdout)
    assert [type(handler) for handler in new.handlers] == [logging.StreamHandler, logging.FileHandler]
    says("mmdet", new)
    out = capsys.readouterr().out
    assert out.startswith("a line without an end\nloading annotations into memory...\n")
    assert "Epoch(train)" in out


def test_verbose_changes_nothing(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stdout = sys.stdout
    with short_output(verbose=True) as outer, short_output() as inner:
        assert inner is outer
        assert sys.stdout is stdout
        says("mmdet", MMLogger.get_instance(str(log)))
        assert not outer.has_block
    assert "Epoch(train)" in capsys.readouterr().out


def test_silence_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def noise() -> None:
        with silence():
            print("unseen")
            warnings.warn("unseen", stacklevel=1)
            logging.getLogger("mmengine").error("unseen")
            raise KeyError

    with pytest.raises(KeyError):
        noise()
    assert logging.root.manager.disable == logging.NOTSET
    print("seen")
    assert capsys.readouterr() == ("seen\n", "")


def test_silence_hides_ours_too(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with short_output(verbose=True):
        logger = MMLogger.get_instance(str(log), log_file=str(log))
        with silence():
            says("mmkd.hooks.mine", logger)
        logger.info("afterwards")
    assert capsys.readouterr().out.endswith("afterwards\n")
    assert log.read_text().count("\n") == 1


def test_a_forked_process_leaves_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    with short_output() as terminal:
        terminal.show("the block")
        written, process = len(screen.getvalue()), os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: process + 1)
            print("from a worker")
        assert screen.getvalue()[written:] == "from a worker\n"
        print("from the process itself")
        assert screen.getvalue()[written:].endswith("the block"), "drawn again below"
