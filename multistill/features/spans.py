"""When decoding, each encoder and writing worked on a shard: a trace of the features stage.

    trace/<shard>-<random>.json    events of one process on one shard, while the stage runs
    trace.json                     all of them, in Chrome's trace event format

Perfetto and chrome://tracing show `trace.json` as one row per thread of every process. An event has
the thread's processor time, too (`tdur`, microseconds as all times).
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multistill.workspace import read_json, write_json

TRACE = "trace.json"
_FOLDER = "trace"


class Spans:
    """Intervals of the work on one shard, from any of a process's threads.

    Args:
        shard: its number.
    """

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._events: list[dict[str, Any]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record when the block began and ended.

        Args:
            name: of the work, e.g. `speech`.
        """
        started, processor = time.time_ns(), time.thread_time_ns()
        try:
            yield
        finally:
            self._events.append(
                {
                    "name": name,
                    "ph": "X",
                    "ts": started // 1000,
                    "dur": time.time_ns() // 1000 - started // 1000,
                    "tdur": (time.thread_time_ns() - processor) // 1000,
                    "pid": os.getpid(),
                    "tid": threading.get_native_id(),
                    "args": {"shard": self._shard, "host": os.uname().nodename},
                }
            )

    def save(self, store: Path) -> None:
        """Keep the events for `join`.

        Args:
            store: folder of the feature store.
        """
        write_json(store / _FOLDER / f"{self._shard:05d}-{uuid.uuid4().hex}.json", self._events)


def join(store: Path) -> None:
    """Write trace.json from what `Spans.save` kept in a store; nothing where it kept nothing."""
    folder = store / _FOLDER
    if not folder.exists():
        return
    events = [event for path in sorted(folder.glob("*.json")) for event in read_json(path)]
    write_json(store / TRACE, {"traceEvents": events, "displayTimeUnit": "ms"})
    shutil.rmtree(folder)
