"""Downloads checkpoints: limited in size and time, verified, and never half written."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import uuid
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

import requests
import torch
from filelock import FileLock
from mmengine.logging import print_log
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from mmkd.checkpoints.names import hash_in_name, verify
from mmkd.durable import durable_file
from mmkd.errors import UserError

SIZE_LIMIT = "MMKD_MAX_DOWNLOAD_GB"
_DEFAULT_GB = 4.0
TIMEOUT = (10.0, 30.0)  # seconds to connect, and to wait for the next bytes
TRIES = 4  # per request, and per interrupted body
BACKOFF = 0.5  # seconds; doubles with each try
_CHUNK = 1 << 18
_BUSY = (429, 500, 502, 503, 504)


class _BrokenOffError(Exception):
    """The connection broke; a further request can fetch the rest."""


def fetch(url: str) -> Path:
    """Return the file at an HTTP(S) address, from torch.hub's cache if it is there.

    One process per machine downloads, the others wait. A cached file that does not match the hash in its name
    is downloaded again.

    Args:
        url: the address; a hash in its last part is verified, see `mmkd.checkpoints.names`.

    Raises:
        UserError: the download fails, is too large, or does not match the hash in its name.
    """
    try:
        path = Path(torch.hub.get_dir()) / "checkpoints" / cached_name(url)
    except ValueError as error:
        raise _unreachable(url, requests.exceptions.InvalidURL(str(error))) from error
    if _is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _is_whole(path):
                _download(url, path)
    except requests.RequestException as error:
        raise _unreachable(url, error) from error
    except (OSError, NotImplementedError) as error:  # NotImplementedError: file systems without locks
        raise UserError(
            f"Cannot store {url}.",
            expected=f"a writable folder with enough space, at {path.parent}",
            found=f"{type(error).__name__}: {error}",
            remedy="free some space, or set TORCH_HOME to another folder",
        ) from error
    return path


def cached_name(url: str) -> str:
    """The name in the cache: torch.hub's if it contains a hash, otherwise one unique to the address."""
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name)
    if hash_in_name(name):
        return name
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}_{name[-100:]}"


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        verify(path)
    except UserError as error:
        print_log(f"downloaded again: {error}", "current", logging.WARNING)
        return False
    return True


def _download(url: str, path: Path) -> None:
    print_log(f"downloading {url} to {path}", "current")
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with durable_file(path, part) as file:
        with _session() as session:
            _Body(session, url, file).receive()
        file.flush()
        verify(part, path.name)


def _session() -> requests.Session:
    """A session that retries, and follows redirects only to HTTP(S)."""
    # With Retry-After, a server may ask for any wait.
    retry = Retry(
        TRIES - 1,
        backoff_factor=BACKOFF,
        status_forcelist=_BUSY,
        respect_retry_after_header=False,
        raise_on_status=False,
    )
    session = requests.Session()
    session.max_redirects = 10
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


class _Body:
    """A download that continues after a broken connection if the server supports it."""

    def __init__(self, session: requests.Session, url: str, file: IO[bytes]) -> None:
        self.session, self.url, self.file = session, url, file
        self.limit = size_limit()
        self.version: str | None = None  # the server's version of the file, to continue with the same one

    def receive(self) -> None:
        for left in reversed(range(TRIES)):
            try:
                return self._request()
            except _BrokenOffError as error:
                if left == 0:
                    raise UserError(
                        f"Download of {self.url} failed {TRIES} times.",
                        expected="the whole file",
                        found=f"{self.file.tell()} bytes, then: {error}",
                        remedy="try again later, or download it manually and give the file path",
                    ) from error
                print_log(f"connection lost after {self.file.tell()} bytes, retrying: {error}", "current")

    def _request(self) -> None:
        headers = {"Accept-Encoding": "identity"}
        if self.version is not None and self.file.tell():
            headers |= {"Range": f"bytes={self.file.tell()}-", "If-Range": self.version}
        with self.session.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {self.file.tell()}-")
            if not (response.status_code == 206 and goes_on):
                self.file.seek(0)
                self.file.truncate()
            if response.status_code in (206, 416) and not goes_on:
                raise _BrokenOffError("the server sent a different byte range than requested")
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise UserError(
                    f"{self.url} is a web page, not a file.",
                    expected="the address of the file itself",
                    found="text/html",
                    remedy="open it in a browser and copy the address of its download link",
                )
            self.version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            self._write(response)

    def _write(self, response: requests.Response) -> None:
        length = response.headers.get("Content-Length", "")
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        total = self.file.tell() + int(length) if length.isdecimal() and plain else None
        self._check_size(total or 0)
        bar = tqdm(
            total=total,
            initial=self.file.tell(),
            desc=PurePosixPath(urlsplit(self.url).path).name,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        with bar:
            try:
                for chunk in response.iter_content(_CHUNK):
                    self.file.write(chunk)
                    bar.update(len(chunk))
                    self._check_size(self.file.tell())
            except requests.RequestException as error:
                raise _BrokenOffError(str(error)) from error
        if total is not None and self.file.tell() != total:
            raise _BrokenOffError(f"the server announced {total} bytes")

    def _check_size(self, size: int) -> None:
        if size > self.limit:
            raise UserError(
                f"{self.url} is too large.",
                expected=f"at most {self.limit / 1e9:g} GB",
                found=f"{size / 1e9:.2f} GB" if size < 1e15 else f"{size:.3g} bytes",
                remedy=f"if that is right, set {SIZE_LIMIT} to more",
            )


def size_limit() -> float:
    """The largest download, in bytes.

    Raises:
        UserError: the environment variable is not a number above 0.
    """
    given = os.environ.get(SIZE_LIMIT) or _DEFAULT_GB
    try:
        limit = float(given) * 1e9
    except ValueError:
        limit = -1.0
    if not limit > 0:
        raise UserError(
            f"Invalid {SIZE_LIMIT}.",
            expected="a number of gigabytes above 0",
            found=str(given),
            remedy="correct or unset it",
        )
    return limit


def _unreachable(url: str, error: requests.RequestException) -> UserError:
    remedy = (
        "check the URL and the network (proxy: HTTPS_PROXY), or download it manually and give the file path"
    )
    if isinstance(error, requests.HTTPError) and error.response is not None:
        found = f"status {error.response.status_code} {error.response.reason}"
        if error.response.status_code in (401, 403):
            remedy = "the server requires a login: download it manually and give the file path"
    elif isinstance(error, requests.exceptions.InvalidSchema):
        found = f"a redirect to a scheme other than HTTP(S): {error}"
        remedy = "if you trust it, download it manually and give the file path"
    else:
        found = f"{type(error).__name__}: {error}"
    return UserError(f"Cannot download {url}.", expected="a reachable file", found=found, remedy=remedy)
