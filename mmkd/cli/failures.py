"""What a training that failed leaves behind, and what is said of it."""

from __future__ import annotations

import errno
from typing import Any

from mmkd.errors import UserError, user_error
from mmkd.hooks import StopHook
from mmkd.hooks.seeded_data import SampleError, plain_reason

# They say nothing about a program, but about where it writes and reads. (Windows lacks some.)
OF_THE_PLACE = {
    getattr(errno, name, None)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR")
}


def keep_state(runner: Any, error: Exception) -> Exception:
    """Save what a failed training has reached, where it is sound.

    Returns:
        The error to raise: in plain words if the data are to blame.
    """
    saved = None
    for hook in runner.hooks:
        if isinstance(hook, StopHook):
            saved = hook.save_after_failure(runner)
    if saved:
        runner.logger.info(f"training failed; --resume goes on from {saved}")
    if isinstance(error, SampleError):
        return UserError(plain_reason(error))
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return user_error(
            "A process that loads data has died.",
            expected="workers that live as long as the training",
            found=str(error),
            remedy="it was killed from outside, mostly for lack of memory: use fewer num_workers or smaller "
            "batches; --resume goes on",
        )
    return error


def of_the_place(error: Exception) -> str | None:
    """What to say of an error of files and folders; None of any other."""
    if not isinstance(error, OSError) or error.errno not in OF_THE_PLACE:
        return None
    return str(
        user_error(
            f"{error.filename or 'A file'} cannot be written or read.",
            expected="a place with enough space and the permission to use it",
            found=str(error.strerror),
            remedy="make room or name another --work-dir; --resume goes on from the last checkpoint",
        )
    )
