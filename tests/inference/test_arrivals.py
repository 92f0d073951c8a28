"""Samples between two threads: in order, bounded, and behind real time only if they are."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from multistill.inference.arrivals import Arrivals

RATE = 16_000


def never() -> bool:
    return False


def test_everything_arrives_in_order_though_only_a_second_can_wait() -> None:
    arrivals = Arrivals(RATE, most=1.0)
    pieces = [np.full(1600, number) for number in range(100)]

    def send() -> None:
        for piece in pieces:
            arrivals.put(piece)
        arrivals.end()

    threading.Thread(target=send, daemon=True).start()
    received = list(arrivals.pieces(never))
    np.testing.assert_array_equal(
        np.concatenate([piece.samples for piece in received]), np.concatenate(pieces)
    )
    assert max(piece.waiting for piece in received) < 0.25, "ten seconds at once: not late"


def test_what_is_older_than_it_should_be_waits() -> None:
    arrivals = Arrivals(RATE)
    for _ in range(20):
        arrivals.offer(np.zeros(800))
    time.sleep(0.5)
    arrivals.end()
    waiting = [piece.waiting for piece in arrivals.pieces(never)]
    assert waiting[0] == pytest.approx(0.5, abs=0.1) and waiting[-1] == 0
    assert waiting == sorted(waiting, reverse=True)


def test_a_microphone_loses_what_cannot_wait() -> None:
    arrivals = Arrivals(RATE, most=0.3)
    for _ in range(10):
        arrivals.offer(np.zeros(1600))
    arrivals.end()
    assert sum(len(piece.samples) for piece in arrivals.pieces(never)) == 3 * 1600
    assert arrivals.lost == pytest.approx(0.7)


def test_an_error_comes_after_what_arrived_before_it() -> None:
    arrivals = Arrivals(RATE)
    arrivals.put(np.zeros(10))
    arrivals.end(ValueError("gone"))
    received = []
    with pytest.raises(ValueError, match="gone"):
        for piece in arrivals.pieces(never):
            received.append(piece)
    assert len(received) == 1


def test_a_stop_is_noticed_while_nothing_arrives() -> None:
    arrivals = Arrivals(RATE)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    assert list(arrivals.pieces(stop.is_set)) == []
    arrivals.end()
    assert not arrivals.put(np.zeros(10)), "the sender is told, too"
