"""A web server on the loopback that misbehaves on demand, and stops by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, int], None]


class FileServer:
    """Serves ``answers`` by path; each is told the handler and how often that path was asked before."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and Range

    def __enter__(self) -> FileServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def do_GET(self) -> None:
                before = sum(path == self.path for path, _ in outer.asked)
                outer.asked.append((self.path, self.headers.get("Range")))
                outer.answers.get(self.path, status(404))(self, before)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def respond(handler: BaseHTTPRequestHandler, code: int, body: bytes, **headers: str) -> None:
    handler.send_response(code)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, **headers: str) -> Answer:
    return lambda handler, _: respond(handler, code, b"", **headers)


def content(body: bytes, **headers: str) -> Answer:
    return lambda handler, _: respond(handler, 200, body, **headers)


def endless(handler: BaseHTTPRequestHandler, _: int) -> None:
    """As chunks without a length; gives up at 100 MB, or when the client goes away."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b"%x\r\n" % 100_000 + bytes(100_000) + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")
    except OSError:
        handler.close_connection = True


def breaking_off(body: bytes, times: int, ranges: bool) -> Answer:
    """Closes the connection halfway through what is left, so often; then goes on, or begins anew."""

    def answer(handler: BaseHTTPRequestHandler, before: int) -> None:
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if ranges and asked else 0
        rest = body[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if ranges:
            handler.send_header("ETag", '"one"')
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        broken = before < times
        handler.wfile.write(rest[: len(rest) // 2] if broken else rest)
        handler.close_connection = broken

    return answer
