"""What a corpus loader yields: an utterance as the corpus tells it, or why a clip is left out.

Loaders read annotations, transcripts and file names only. Audio headers, label
arithmetic, splits and checks are common to all corpora and come after them
(`multistill.corpora.prepare`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from xxhash import xxh3_64_intdigest

from multistill.config import CorpusConfig

_RECENT = 65_536


class Utterance(NamedTuple):
    """One clip with what the corpus says of it.

    A tuple with an audio path in plain text, because corpora have a million of them: a
    frozen dataclass and a `Path` take longer to make than the file's header to read.

    Attributes:
        utterance_id: unique inside the corpus; the manifest prefixes the corpus title.
        audio_path: absolute.
        votes: counts in class order, or None where the corpus has no raters.
        label: the class the corpus itself names (one label corpora), or None: then the
            votes decide.
        encoding: of the transcript file, as found by trying; None where there is no file.
        ratings: one class name (or None) per rater, for agreement; empty where only the votes
            tell, each an answer; None where the votes are no people's answers.
    """

    utterance_id: str
    audio_path: str
    session: str
    dialogue: str
    turn: int
    speaker: str
    text_raw: str
    text: str
    gender: str | None = None
    votes: tuple[int, ...] | None = None
    label: str | None = None
    valence: float | None = None
    arousal: float | None = None
    encoding: str | None = None
    ratings: tuple[str | None, ...] | None = ()
    split: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A clip or row that does not enter the manifest, and the reason for people."""

    source: str
    reason: str


@dataclass(frozen=True)
class Note:
    """Something to report that rejects nothing, e.g. a published label that a recount denies."""

    source: str
    kind: str
    text: str


Record = Utterance | Rejected | Note


@dataclass(frozen=True)
class Rows:
    """Records still to be made, so that many processes may make them.

    Attributes:
        items: the corpus's rows in its order, of types that pickle fast.
        make: records of some rows, in their order. It pickles, and remembers nothing from one
            call that changes what the next gives: each process has its own.
    """

    items: Iterator[Any]
    make: Callable[[Sequence[Any]], Iterable[Record]]


class SeenIds:
    """SeenIds that have been seen, eight bytes each: a Python set takes ten times that.

    Holds 64-bit hashes; two different names of a million are taken for one another with a
    chance of 3e-8.
    """

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def is_new(self, name: str) -> bool:
        """Whether the name was never asked for; from now on it was."""
        key = xxh3_64_intdigest(name.encode())
        if key in self._recent:
            return False
        if self._sorted:
            at = bisect_left(self._sorted, key)
            if at < len(self._sorted) and self._sorted[at] == key:
                return False
        self._recent.add(key)
        if len(self._recent) >= _RECENT:
            merged = np.concatenate([self._sorted, np.array(list(self._recent), np.uint64)])
            merged.sort()
            self._sorted = array("Q", merged.tobytes())
            self._recent.clear()
        return True


def named_twice(name: str) -> str:
    """The reason of a row whose utterance an earlier row has named, whatever became of that."""
    return f"{name}: named twice; only the first row counts"


class Loader(Protocol):
    """Reads one corpus in a fixed order. Raises UsageError where the folder is not the corpus."""

    def __call__(self, config: CorpusConfig, root: Path) -> Iterator[Record] | Rows: ...
