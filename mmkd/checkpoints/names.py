"""Hashes in file names, as OpenMMLab and torchvision publish them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mmkd.errors import UserError

_HASH = re.compile(r"-([0-9a-f]{8})(?:\.[A-Za-z]\w*)+$")


def hash_in_name(name: str) -> str | None:
    """The first eight digits of a file's SHA-256, if its name contains them.

    They are between the last ``-`` and the suffix: ``atss_r50_fpn_1x_coco_20200209-985f7bd0.pth``. Eight
    lower-case hexadecimal digits, at least one of them a letter: decimal digits only may be a date or a step
    count, and do not count as a hash.
    """
    found = _HASH.search(name)
    return found[1] if found and not found[1].isdecimal() else None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify(path: Path, name: str | None = None) -> None:
    """Compare a file with the hash in its name, if it has one.

    Args:
        path: the file.
        name: the name to check against, if different from the path's.

    Raises:
        UserError: the file does not match the hash.
    """
    expected = hash_in_name(name or path.name)
    if expected is None:
        return
    found = sha256(path)
    if not found.startswith(expected):
        raise UserError(
            f"{path if name is None else name} does not match the hash in its name.",
            expected=f"a SHA-256 starting with {expected}",
            found=f"{found[:8]}…, {path.stat().st_size} bytes",
            remedy="it is truncated, corrupt or a different file: download or copy it again. If these "
            "eight characters are not a hash, rename the file",
        )
