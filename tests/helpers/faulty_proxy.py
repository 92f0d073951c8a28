"""A proxy before a tracking server that answers for it, is slow, or swallows its answers."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ["500", "slow", "unanswered", "cut off"]
"""`500`: nothing reaches the server. `slow`: half a second before each request.
`unanswered`: the request is carried out, then the connection is closed. `cut off`: likewise, after
half of the answer."""


class FaultyProxy:
    """Attributes:
    fault: one of `FAULTS`, or None: requests and answers pass.
    """

    def __init__(self, target: str) -> None:
        self.target, self.fault = target, None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    fault: str | None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client has gone
                    self.close_connection = True

            def _forward(self) -> None:
                fault = proxy.fault
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if fault is not None and fault.isdigit():
                    self.send_response(int(fault))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if fault == "slow":
                    time.sleep(0.5)
                status, headers, answer = proxy._ask(self.command, self.path, self.headers, body)
                if fault == "unanswered":
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer[: len(answer) // 2] if fault == "cut off" else answer)
                self.close_connection = fault == "cut off"

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _ask(
        self, method: str, path: str, headers: http.client.HTTPMessage, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=60)
        passed = {k: v for k, v in headers.items() if k.lower() not in {"host", "connection"}}
        try:
            connection.request(method, path, body, passed)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except OSError:
            return 502, [], b""
        finally:
            connection.close()


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(target)
    threading.Thread(target=proxy._server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy._server.shutdown()
        proxy._server.server_close()
