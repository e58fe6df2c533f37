"""Run training and testing in separate processes and follow their logs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mmkd
from mmkd.sweeps.processes import end

Progress = Callable[[str, float], None]
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60  # for the iteration and the checkpoint at the end
TAIL_BYTES = 20_000
# mmengine's LogProcessor: `Epoch(train)  [3][10/37]` and `Iter(train) [ 10/100]`.
_EPOCH = re.compile(r"Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\]")
_ITER = re.compile(r"Iter\(train\)\s+\[\s*(\d+)/(\d+)\]")


class ToolError(RuntimeError):
    """A tool failed; the message is its last output."""


def call(
    tool: str,
    arguments: Sequence[str],
    log: Path,
    progress: Progress | None = None,
    epochs: int | None = None,
) -> None:
    """Run one of mmkd's tools to its end, its output in a file.

    Args:
        tool: ``train`` or ``test``.
        arguments: of the tool.
        log: for its output, at the end of what is there.
        progress: told what a training is at, and the share that is done.
        epochs: of the training, if it counts in epochs.

    Raises:
        ToolError: it ended with an error.
        KeyboardInterrupt: as it comes; the tool has then been asked to end.
    """
    code = f"import sys; from mmkd.cli.{tool} import main; sys.exit(main())"
    # A clone needs no installation.
    path = [str(Path(mmkd.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours alone: we ask it to end
            env=env,
        )
        try:
            while process.poll() is None:
                if progress is not None:
                    progress(*where(_tail(log, start), epochs))
                time.sleep(POLL_SECONDS)
        finally:
            end(process, PATIENCE_SECONDS)
    if process.returncode != 0:
        raise ToolError(last_words(_tail(log, start), process.returncode))


def where(text: str, epochs: int | None) -> tuple[str, float]:
    """What a training is at, by the end of its log.

    Args:
        text: the end of the log.
        epochs: of the whole training, if it counts in epochs.

    Returns:
        A note for people and the share that is done, in [0, 1].
    """
    by_iter = _ITER.findall(text)
    if by_iter:
        step, total = map(int, by_iter[-1])
        return f"iteration {step}/{total}", step / max(1, total)
    by_epoch = _EPOCH.findall(text)
    if by_epoch:
        epoch, step, steps = map(int, by_epoch[-1])
        if epochs:
            return f"epoch {epoch}/{epochs}", min(1.0, (epoch - 1 + step / max(1, steps)) / epochs)
        return f"epoch {epoch}", 0.0
    return "starting", 0.0


def last_words(text: str, code: int) -> str:
    """Why a tool ended: its own message, else its last line."""
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
