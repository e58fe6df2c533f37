"""Run training and testing in separate processes and follow them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmkd
from mmkd.history import LogReader
from mmkd.sweeps.processes import end

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60  # time to finish the iteration and write the checkpoint
TAIL_BYTES = 20_000


class ToolError(RuntimeError):
    """A tool failed; the message is its last output."""


def call(tool: str, arguments: Sequence[str], log: Path, watch: Callable[[], None] | None = None) -> None:
    """Run one of mmkd's tools and wait for it, with its output in a file.

    Args:
        tool: ``train``, ``test`` or ``predict``.
        arguments: the tool's arguments.
        log: file to append the output to.
        watch: called repeatedly while the tool runs.

    Raises:
        ToolError: the tool failed.
        KeyboardInterrupt: passed on after asking the tool to end.
    """
    code = f"import sys; from mmkd.cli.{tool} import main; sys.exit(main())"
    # So that a clone works without installation.
    path = [str(Path(mmkd.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *arguments, "--verbose"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only us; we ask the tool to end
            env=env,
        )
        try:
            while process.poll() is None:
                if watch is not None:
                    watch()
                time.sleep(POLL_SECONDS)
        finally:
            end(process, PATIENCE_SECONDS)
    if process.returncode != 0:
        raise ToolError(last_words(_tail(log, start), process.returncode))


class Position:
    """How far a training has got, from what it has logged.

    Args:
        folder: the training's work dir.
        train_cfg: the config's ``train_cfg``, with the budget.
    """

    def __init__(self, folder: Path, train_cfg: Mapping[str, Any]) -> None:
        self._log, self._train_cfg = LogReader(folder), train_cfg
        self._epoch, self._step = 0, 0
        self._ends: dict[int, int] = {}  # epoch → its last step

    def __call__(self) -> tuple[str, float]:
        """A readable note and the share done, in [0, 1]; 0 during the first epoch."""
        for row in self._log.new_rows():
            if "loss" in row:
                self._epoch, self._step = int(row.get("epoch", 0)), int(row["step"])
                self._ends[self._epoch] = max(self._step, self._ends.get(self._epoch, 0))
        if not self._step:
            return "starting", 0.0
        epochs = self._train_cfg.get("max_epochs")
        if not epochs:
            total = int(self._train_cfg["max_iters"])
            return f"iteration {self._step}/{total}", min(1.0, self._step / total)
        before = max((end for epoch, end in self._ends.items() if epoch < self._epoch), default=0)
        done = self._step / before * (self._epoch - 1) if before else 0.0
        return f"epoch {self._epoch}/{epochs}", min(1.0, done / epochs)


def last_words(text: str, code: int) -> str:
    """Why a tool ended: its error message, or else its last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("mmkd: error: "):
            told = [line.removeprefix("mmkd: error: "), *lines[number + 1 :]]
            return "\n".join(told[:8])
    if code < 0:
        return f"ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return lines[-1] if lines else f"exit code {code}, and no output"


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - TAIL_BYTES))
        return file.read().decode(errors="replace")
