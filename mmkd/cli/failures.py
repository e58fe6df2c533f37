"""Save the state of a failed training and report the failure."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from typing import Any

from torch.utils.data import dataloader

from mmkd.errors import UserError
from mmkd.hooks import StopHook
from mmkd.hooks.seeded_data import SampleError, plain_reason

# They are no bugs but problems of disks and permissions. (Windows lacks some.)
OF_THE_PLACE = {
    getattr(errno, name, None)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR")
}


def keep_state(runner: Any, error: Exception) -> Exception:
    """Save the state of a failed training if it is valid.

    Returns:
        The error to raise, in plain words if the data caused it.
    """
    try:
        saved = _save(runner)
    except Exception as late:
        if not _worker_died(late):
            raise
        # torch reports a dead worker by a signal, once and at any time: here it interrupted saving.
        error, saved = late, _save(runner)
    if saved:
        runner.logger.info(f"training failed; use --resume to continue from {saved}")
    if isinstance(error, SampleError):
        return UserError(plain_reason(error))
    if death := _worker_died(error):
        return UserError(
            "A data loader worker died.",
            expected="workers that run until training ends",
            found=death,
            remedy="it was killed, usually by running out of memory: reduce num_workers or the batch "
            "size, then use --resume to continue",
        )
    return error


def _save(runner: Any) -> Any:
    saved = [hook.save_after_failure(runner) for hook in runner.hooks if isinstance(hook, StopHook)]
    return saved[-1] if saved else None


def _worker_died(error: BaseException) -> str | None:
    """torch's message about a dead data loader worker; ``None`` if that is not the cause."""
    broken = None
    for reason in _chain(error):
        if isinstance(reason, RuntimeError) and str(reason).startswith("DataLoader worker"):
            return str(reason)
        if isinstance(reason, ConnectionError | EOFError | FileNotFoundError) and _from_a_worker(reason):
            broken = f"connection to the worker lost ({type(reason).__name__})"
    return broken


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _from_a_worker(error: BaseException) -> bool:
    """Whether it was raised while receiving data from a data loader worker."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_code.co_filename == dataloader.__file__ and frame.f_code.co_name == "_try_get_data"
        for frame in frames
    )


def of_the_place(error: Exception) -> UserError | None:
    """A readable error for problems with files and folders; ``None`` for other errors."""
    if not isinstance(error, OSError) or error.errno not in OF_THE_PLACE:
        return None
    return UserError(
        f"Cannot write or read {error.filename or 'a file'}.",
        expected="enough disk space and access permissions",
        found=str(error.strerror),
        remedy="free some space or choose another --work-dir; use --resume to continue from the "
        "last checkpoint",
    )
