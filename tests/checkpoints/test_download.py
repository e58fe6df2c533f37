from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
import torch

from mmkd.checkpoints import download
from mmkd.checkpoints.download import SIZE_LIMIT, cached_name, fetch, size_limit
from mmkd.checkpoints.names import hash_in_name
from mmkd.errors import UserError

from .server import FileServer, breaking_off, content, endless, respond, status

BODY = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(BODY).hexdigest()
NAME = f"/zoo/model-{DIGEST[:8]}.pth"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", (2.0, 0.3))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


def folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def left() -> list[str]:
    """What is in the cache, but for locks."""
    return sorted(path.name for path in folder().iterdir() if path.suffix != ".lock")


def refused(url: str) -> str:
    with pytest.raises(UserError) as error:
        fetch(url)
    assert left() == [], "nothing half written stays"
    return str(error.value)


def test_the_digest_of_the_tests_is_a_hash() -> None:
    assert hash_in_name(Path(NAME).name) == DIGEST[:8]


@pytest.mark.parametrize("path", [NAME, "/epoch_12.pth"])
def test_a_second_use_takes_the_file_of_the_first(server: FileServer, path: str) -> None:
    server.answers[path] = content(BODY)
    first = fetch(server.url + path)
    assert first.read_bytes() == BODY
    assert fetch(server.url + path) == first
    assert len(server.asked) == 1
    assert left() == [first.name]


def test_names_in_the_cache() -> None:
    assert cached_name(f"https://a/b/model-{DIGEST[:8]}.pth?x=1") == f"model-{DIGEST[:8]}.pth"
    one, other = (cached_name(f"https://{host}/epoch_12.pth") for host in "ab")
    assert one != other, "two files of one name are two files"
    assert one.endswith("_epoch_12.pth")
    for hostile in (
        "https://a/..%2f..%2fetc/%2e%2e",
        "https://a/x%5c..%5cy.pth",
        "https://a/",
        "https://a/x%00.pth",
    ):
        name = cached_name(hostile)
        assert Path(name).name == name
        assert name not in ("", ".", "..")
        assert "\\" not in name
        assert "\0" not in name


def test_a_damaged_file_in_the_cache_is_had_again(server: FileServer) -> None:
    server.answers[NAME] = content(BODY)
    folder().mkdir(parents=True)
    (folder() / Path(NAME).name).write_bytes(BODY[:100])
    assert fetch(server.url + NAME).read_bytes() == BODY


def test_another_file_than_the_name_says(server: FileServer) -> None:
    server.answers[NAME] = content(BODY[1:])
    assert "does not match the hash in its name" in refused(server.url + NAME)
    assert len(server.asked) == 1


def test_not_there(server: FileServer) -> None:
    assert "found:    status 404 Not Found" in refused(f"{server.url}/none.pth")
    server.answers["/secret.pth"] = status(403)
    assert "download it manually" in refused(f"{server.url}/secret.pth")


def test_a_busy_server_is_asked_again(server: FileServer) -> None:
    busy = status(503, Retry_After="3600")
    server.answers["/m.pth"] = lambda handler, before: (busy if before < 2 else content(BODY))(
        handler, before
    )
    assert fetch(f"{server.url}/m.pth").read_bytes() == BODY
    server.answers["/always.pth"] = busy
    (folder() / left()[0]).unlink()
    assert "status 503" in refused(f"{server.url}/always.pth")
    assert sum(path == "/always.pth" for path, _ in server.asked) == download.TRIES


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_goes_on_or_begins_anew(server: FileServer, ranges: bool) -> None:
    server.answers[NAME] = breaking_off(BODY, 2, ranges)
    assert fetch(server.url + NAME).read_bytes() == BODY
    starts = [asked for _, asked in server.asked]
    assert len(starts) == 3
    assert starts[0] is None
    assert all((asked is not None) is ranges for asked in starts[1:])


def test_a_file_that_changed_meanwhile_begins_anew(server: FileServer) -> None:
    half = breaking_off(BODY[::-1], 1, True)
    server.answers[NAME] = lambda handler, before: (half if before == 0 else content(BODY))(handler, before)
    assert fetch(server.url + NAME).read_bytes() == BODY


def test_another_part_than_the_rest_is_not_taken(server: FileServer) -> None:
    half = breaking_off(BODY, 1, True)

    def wrong(handler: BaseHTTPRequestHandler, before: int) -> None:
        respond(handler, 206, BODY[5:], Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}")

    answers = [half, wrong, content(BODY)]
    server.answers[NAME] = lambda handler, before: answers[before](handler, before)
    assert fetch(server.url + NAME).read_bytes() == BODY


def test_a_connection_that_always_breaks(server: FileServer) -> None:
    server.answers["/m.pth"] = breaking_off(BODY, 1000, False)
    assert f"failed {download.TRIES} times" in refused(f"{server.url}/m.pth")


def test_a_server_that_says_nothing(server: FileServer) -> None:
    over = threading.Event()
    server.answers["/m.pth"] = lambda handler, before: over.wait(5)
    assert "Cannot download" in refused(f"{server.url}/m.pth")
    over.set()


def test_nobody_listens() -> None:
    with FileServer() as gone:
        pass
    assert "ConnectionError" in refused(f"{gone.url}/m.pth")


@pytest.mark.parametrize("answer", [content(BODY), endless])
def test_too_large(server: FileServer, monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    monkeypatch.setenv(SIZE_LIMIT, "0.001")
    server.answers["/m.pth"] = answer  # type: ignore[assignment]
    text = refused(f"{server.url}/m.pth")
    assert "is too large" in text
    assert f"set {SIZE_LIMIT}" in text


def test_too_large_by_its_own_word_is_not_begun(server: FileServer) -> None:
    server.answers["/m.pth"] = lambda handler, _: respond(handler, 200, b"", Content_Length=str(10**16))
    assert "1e+16 bytes" in refused(f"{server.url}/m.pth")


@pytest.mark.parametrize(("given", "expected"), [(None, 4e9), ("", 4e9), ("0.5", 5e8), ("1e3", 1e12)])
def test_size_limit(monkeypatch: pytest.MonkeyPatch, given: str | None, expected: float) -> None:
    monkeypatch.delenv(SIZE_LIMIT, raising=False)
    if given is not None:
        monkeypatch.setenv(SIZE_LIMIT, given)
    assert size_limit() == expected


@pytest.mark.parametrize("given", ["0", "-1", "4GB", "nan"])
def test_size_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(SIZE_LIMIT, given)
    with pytest.raises(UserError, match=f"Invalid {SIZE_LIMIT}"):
        size_limit()


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/m.pth", "file:///etc/passwd", "gopher://x"])
def test_redirects_to_other_schemes(server: FileServer, target: str) -> None:
    server.answers["/m.pth"] = status(302, Location=target)
    assert "a redirect to a scheme other" in refused(f"{server.url}/m.pth")


def test_redirects(server: FileServer) -> None:
    server.answers["/there.pth"] = content(BODY)
    server.answers["/here.pth"] = status(302, Location="/there.pth")
    server.answers["/round.pth"] = status(302, Location="/round.pth")
    assert "TooManyRedirects" in refused(f"{server.url}/round.pth")
    assert fetch(f"{server.url}/here.pth").read_bytes() == BODY


def test_a_web_page(server: FileServer) -> None:
    server.answers["/m.pth"] = content(b"<html>", Content_Type="text/html; charset=utf-8")
    assert "is a web page" in refused(f"{server.url}/m.pth")


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "https://" + "a" * 300 + "/m.pth", "http://a b/m.pth"]
)
def test_addresses_that_are_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", _no_network)
    with pytest.raises(UserError, match="Cannot download"):
        fetch(url)


def _no_network(*_: object, **__: object) -> None:
    raise requests.ConnectionError("no route to host")


def test_a_cache_that_cannot_be_written(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Cannot store [\\s\\S]*TORCH_HOME"):
        fetch(f"{server.url}/m.pth")


def test_whoever_wants_one_file_gets_it_from_one_download(server: FileServer) -> None:
    begun = threading.Event()

    def slow(handler: BaseHTTPRequestHandler, before: int) -> None:
        begun.wait(2)
        content(BODY)(handler, before)

    server.answers[NAME] = slow
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(fetch, server.url + NAME) for _ in range(3)]
        begun.set()
        paths = {each.result(timeout=60) for each in waiting}
    assert len(server.asked) == 1
    assert [path.read_bytes() for path in paths] == [BODY]
