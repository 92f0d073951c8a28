"""Connections that are slow, silent or cut short cost themselves only."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections import Counter
from urllib.parse import urlsplit

import pytest
from helpers.serving_case import http_server

from multistill import Predictor

BODY = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\ngood day\r\n--b--\r\n'
KIND = "multipart/form-data; boundary=b"


def head(length: int) -> bytes:
    lines = ("POST /predict HTTP/1.1", "Host: localhost", f"Content-Type: {KIND}")
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def opened(address: str, content: bytes) -> socket.socket:
    parts = urlsplit(address)
    made = socket.create_connection((parts.hostname, parts.port), timeout=20)
    made.sendall(content)
    return made


def status(address: str) -> int:
    request = urllib.request.Request(f"{address}/predict", BODY, {"Content-Type": KIND})
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.status


@pytest.mark.parametrize("sent", [b"", head(10_000)[:40], head(10_000), head(10_000) + BODY[:30]])
def test_a_request_that_stops_in_the_middle_holds_nobody_up(
    predictor: Predictor, sent: bytes
) -> None:
    with http_server(predictor, upload_timeout_s=0.5, max_requests=1) as address:
        waiting = [opened(address, sent) for _ in range(20)]
        start = time.monotonic()
        assert status(address) == 200
        assert time.monotonic() - start < 10
        if b"\r\n\r\n" in sent:
            for each in waiting:
                reply = each.recv(65536)
                assert reply.startswith(b"HTTP/1.1 408"), reply
                body = reply.partition(b"\r\n\r\n")[2] or each.recv(65536)
                assert json.loads(body)["reason"] == "slow upload"
        for each in waiting:
            each.close()
        assert status(address) == 200


@pytest.mark.parametrize("announced", [True, False])
def test_uploads_at_a_time_are_bounded_in_bytes(predictor: Predictor, announced: bool) -> None:
    """Of six uploads of 1 MB that do not end, at most four find room; later there is some again."""
    length = f"Content-Length: {2 * 10**6}" if announced else "Transfer-Encoding: chunked"
    start = "\r\n".join(
        ["POST /predict HTTP/1.1", "Host: localhost", f"Content-Type: {KIND}", length]
    )
    part = BODY.replace(b'"text"', b'"audio"; filename="a"').removesuffix(b"\r\n--b--\r\n")
    part += b"x" * 10**6
    sent = part if announced else b"%x\r\n%s\r\n" % (len(part), part)
    with http_server(predictor, max_mb=3, max_uploads_mb=4, upload_timeout_s=1.0) as address:
        waiting = [opened(address, start.encode() + b"\r\n\r\n" + sent) for _ in range(6)]
        answers = Counter(each.recv(65536)[9:12].decode() for each in waiting)
        assert set(answers) == {"408", "503"} and answers["408"] <= 4, answers
        assert status(address) == 200


def test_a_client_that_leaves_is_forgotten(predictor: Predictor) -> None:
    with http_server(predictor) as address:
        for _ in range(5):
            opened(address, head(len(BODY)) + BODY[:30]).close()
        assert status(address) == 200
        with urllib.request.urlopen(f"{address}/metrics") as reply:
            text = reply.read().decode()
        assert "multistill_predictions_in_progress 0.0" in text
        assert 'multistill_requests_total{path="/predict",status="200"} 1.0' in text
        assert 'multistill_refused_total{reason="client left"} 5.0' in text
