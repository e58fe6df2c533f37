"""Short terminal output: what libraries print, log and warn of goes only to mmengine's log file.

The libraries are those in `LIBRARIES`. Their errors are shown, and so is everything that mmkd or your own
code logs or prints. A terminal can also have a block at the bottom that is updated in place.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from mmengine.logging import MMLogger
from rich.console import Console, RenderableType
from rich.live import Live

LIBRARIES = {"lvis", "mmcv", "mmdet", "mmengine", "mmpretrain", "pycocotools", "torch", "torchvision"}
# Modules through which others print and log.
_CARRIERS = ("logging", "mmengine.logging", "warnings", "wandb", __name__)
_open: list[Terminal] = []


class Terminal:
    """Where a command prints.

    Args:
        stream: the standard output.
        verbose: show everything, and no block.

    Attributes:
        hidden: number of warnings that went only to the log file.
    """

    def __init__(self, stream: TextIO, verbose: bool) -> None:
        self.verbose = verbose
        self.hidden = 0
        self._stream = stream
        self._console = Console(file=stream, force_jupyter=False, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._process = os.getpid()
        self._waiting: list[logging.LogRecord] = []

    @property
    def has_block(self) -> bool:
        """Whether a block can be shown: not in a file, a pipe, a notebook or a dumb terminal."""
        return not self.verbose and self._console.is_terminal and not self._console.is_dumb_terminal

    def say(self, text: str) -> None:
        """Print a line, above the block if there is one."""
        if self._live is None or os.getpid() != self._process:  # data loader workers have a copy of the block
            self._stream.write(text + "\n")
            self._stream.flush()
        else:
            self._console.print(text, soft_wrap=True)

    def show(self, block: RenderableType) -> None:
        """Replace the block."""
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,  # its thread could hold a lock while data loaders fork
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
        self._live.update(block, refresh=True)

    def leave_block(self) -> None:
        """Keep the block as it is and print below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def keep(self, text: str, level: int = logging.INFO) -> None:
        """Write a line only to the log file, as soon as there is one."""
        self.hidden += level >= logging.WARNING
        self._waiting.append(logging.LogRecord("stdout", level, __file__, 0, text, None, None))
        files = [
            handler
            for logger in list(MMLogger._instance_dict.values())[-1:]
            for handler in logger.handlers
            if isinstance(handler, logging.FileHandler)
        ]
        while files and self._waiting:
            record = self._waiting.pop(0)
            for file in files:
                if record.levelno >= file.level:
                    file.handle(record)


class _Show(logging.Handler):
    """Replaces the stream handler of a logger."""

    def __init__(self, terminal: Terminal, before: logging.StreamHandler[Any]) -> None:
        super().__init__(before.level)
        self.before = before
        self.filters = list(before.filters)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR and _from_library():
            self._terminal.hidden += record.levelno >= logging.WARNING
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._terminal.say(prefix + record.getMessage())


class _Lines:
    """Replaces `sys.stdout`: passes complete lines to the terminal or the log file."""

    def __init__(self, terminal: Terminal, stream: TextIO) -> None:
        self._terminal, self._stream = terminal, stream
        self._begun = {True: "", False: ""}  # by whether a library prints it

    def write(self, text: str) -> int:
        library = _from_library()
        *lines, self._begun[library] = (self._begun[library] + text).split("\n")
        for line in lines:
            (self._terminal.keep if library else self._terminal.say)(line)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close_line(self) -> None:
        """Pass on lines without a line break at their end."""
        for library, line in self._begun.items():
            if line:
                (self._terminal.keep if library else self._terminal.say)(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def short_output(verbose: bool = False) -> Iterator[Terminal]:
    """Send what libraries print, log and warn of to the log file; show the rest.

    Args:
        verbose: show everything. A nested call uses the outer terminal.

    Example:
        >>> with short_output() as terminal:
        ...     terminal.say("epoch 1")
        epoch 1
    """
    if _open:
        yield _open[-1]
        return
    terminal = Terminal(sys.stdout, verbose)
    _open.append(terminal)
    try:
        if verbose:
            yield terminal
            return
        lines = _Lines(terminal, sys.stdout)
        with _loggers(terminal), warnings.catch_warnings(), contextlib.redirect_stdout(lines):
            warnings.showwarning = _keep_warnings(terminal)
            try:
                yield terminal
            finally:
                terminal.leave_block()
                lines.close_line()
    finally:
        _open.remove(terminal)


@contextmanager
def silence() -> Iterator[None]:
    """Suppress everything that is printed, logged or warned of, also in the log file and with ``verbose``."""
    before = logging.root.manager.disable
    _disable_logging(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _disable_logging(before)


def _disable_logging(level: int) -> None:
    logging.disable(level)
    for logger in MMLogger._instance_dict.values():
        logger._cache.clear()  # Python forgets only in its own loggers what was enabled


@contextmanager
def _loggers(terminal: Terminal) -> Iterator[None]:
    """Replace the stream handlers of mmengine's loggers, including those created meanwhile."""

    def replace(logger: MMLogger) -> None:
        logger.handlers = [
            _Show(terminal, handler) if type(handler) is logging.StreamHandler else handler
            for handler in logger.handlers
        ]

    make = MMLogger.__init__

    def make_and_replace(self: MMLogger, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        replace(self)

    for logger in MMLogger._instance_dict.values():
        replace(logger)
    MMLogger.__init__ = make_and_replace
    try:
        yield
    finally:
        MMLogger.__init__ = make
        for logger in MMLogger._instance_dict.values():
            for index, handler in enumerate(logger.handlers):
                if isinstance(handler, _Show):
                    if isinstance(handler.before.stream, _Lines):  # created meanwhile
                        handler.before.setStream(terminal._stream)
                    logger.handlers[index] = handler.before


def _keep_warnings(terminal: Terminal) -> Callable[..., None]:
    def keep(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        terminal.keep(f"{filename}:{lineno}: {category.__name__}: {message}", logging.WARNING)

    return keep


def _from_library() -> bool:
    """Whether the current print, log record or warning comes from a library."""
    frame = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not any(name == carrier or name.startswith(f"{carrier}.") for carrier in _CARRIERS):
            return name.partition(".")[0] in LIBRARIES
        frame = frame.f_back  # type: ignore[assignment]
    return False
