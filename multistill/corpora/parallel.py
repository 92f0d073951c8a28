"""Work over the CPUs of this machine, in order: this process works too, others join in.

Small corpora never pay for processes, and a process that is starting holds nothing up.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import lru_cache, partial
from itertools import chain, islice
from time import perf_counter
from typing import Any, Generic, TypeVar

from multistill.hardware import cores

ALONE = 0.1  # seconds of work before other processes are started
AHEAD = 4  # chunks handed out for each process, so that none waits for its next
_IDLE = 20  # seconds that a process waits for more work before it leaves

T = TypeVar("T")
R = TypeVar("R")


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    source = iter(items)
    while some := list(islice(source, size)):
        yield some


def in_order(
    work: Callable[[Sequence[T]], R], chunks: Iterable[Sequence[T]], workers: int | None = None
) -> Iterator[R]:
    """`work(chunk)` for each chunk, in order, over the CPUs of this machine.

    `chunks` is read ahead by a few for each process only, so it may be longer than memory.

    Args:
        work: a function of a module or an object that pickles; a process keeps its copy, so
            what it remembers from one chunk serves the next. An empty chunk must do no harm:
            new processes warm up with one.
        workers: processes, this one included; default one a CPU.
    """
    others = (cores() if workers is None else workers) - 1
    helpers: _Helpers[T, R] | None = None
    waiting: deque[tuple[Future[R], Sequence[T]]] = deque()
    spent = 0.0

    def first() -> R:
        future, chunk = waiting.popleft()
        try:
            return future.result()
        except BrokenExecutor:  # a process was killed, most likely for memory
            return work(chunk)

    try:
        for chunk in chunks:
            if helpers is None and others > 0 and spent > ALONE:
                helpers = _Helpers(work, others)
            future = helpers.take(chunk) if helpers is not None else None
            if future is None:
                started = perf_counter()
                future = _done(work(chunk))
                spent += perf_counter() - started
            waiting.append((future, chunk))
            # What this process has made behind a slow chunk must not pile up either.
            while waiting and (waiting[0][0].done() or len(waiting) > 2 * AHEAD * others + 2):
                yield first()
        while waiting:
            yield first()
    finally:
        for future, _ in waiting:
            future.cancel()


def map_files(
    work: Callable[[str], R], paths: Iterable[str], workers: int | None = None, *, chunk: int = 32
) -> Iterator[R]:
    """`work(path)` for each path, in order; `work` is a function of a module."""
    return chain.from_iterable(in_order(partial(_each, work), chunked(paths, chunk), workers))


def _each(work: Callable[[str], R], paths: Sequence[str]) -> list[R]:
    return [work(path) for path in paths]


def _done(result: R) -> Future[R]:
    future: Future[R] = Future()
    future.set_result(result)
    return future


class _Helpers(Generic[T, R]):
    """Other processes that do `work`; they get chunks once the first of them has started."""

    def __init__(self, work: Callable[[Sequence[T]], R], count: int) -> None:
        # loky's processes start clean, where forks would inherit Ray's and torch's threads and
        # multiprocessing's spawn would run a caller's script again.
        from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

        self._pool: Executor = get_reusable_executor(count, timeout=_IDLE)
        self._work = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        self._started = self._pool.submit(_ready, self._work)
        self._most = AHEAD * count
        self._taken: list[Future[R]] = []

    def take(self, chunk: Sequence[T]) -> Future[R] | None:
        """The chunk's result to come; None while they start, are busy, or are gone."""
        self._taken = [one for one in self._taken if not one.done()]
        if not self._started.done() or len(self._taken) >= self._most:
            return None
        try:
            # Pickled here, because loky would ask Python about every tuple.
            rows = pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)
            self._taken.append(self._pool.submit(_there, self._work, rows))
        except BrokenExecutor:
            return None
        return self._taken[-1]


def _ready(work: bytes) -> None:
    _remembered(work)([])  # imports on the way what it will need


def _there(work: bytes, chunk: bytes) -> Any:
    return _remembered(work)(pickle.loads(chunk))  # noqa: S301, bytes of our own process


@lru_cache(2)
def _remembered(work: bytes) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = pickle.loads(work)  # noqa: S301, likewise
    return found
