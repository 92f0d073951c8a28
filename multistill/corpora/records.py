"""Records that corpus loaders yield: utterances, rejected rows, notes.

Loaders read annotations, transcripts and file names only. What is common to all corpora (audio
headers, labels, splits, the quality report) happens later, in `multistill.corpora.build` and
`multistill.corpora.prepare`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

_UNSORTED = 65_536


class Utterance(NamedTuple):
    """One clip and its annotation.

    A tuple with the audio path as a string, because corpora have a million of them: creating a
    frozen dataclass and a `Path` takes longer than reading the file's header.

    Attributes:
        utterance_id: unique in the corpus; the manifest prefixes it with the corpus title.
        audio_path: absolute.
        votes: counts in class order, or None if the corpus has no raters.
        label: the class given by the corpus itself, or None: then the votes decide. Without
            votes too, the utterance has no class, and is kept if it has a dimension of the job.
        valence, arousal, dominance: from 1 to 5, or None.
        encoding: of the transcript file, as detected; None if there is no file.
        ratings: one class name (or None) per rater, for agreement; empty if only the votes are
            known, each of which then counts as an answer; None if the votes are not answers of
            raters.
        split: train, valid or test if the corpus defines a split.
        age: of the speaker in years.
        style: `scripted` or `improvised`, or another word of the corpus.
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
    dominance: float | None = None
    encoding: str | None = None
    ratings: tuple[str | None, ...] | None = ()
    split: str | None = None
    age: float | None = None
    style: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A clip or row that does not enter the manifest, with a human-readable reason.

    `source` is a path below the corpus root, for a table row followed by `:line`. `kind` is what
    rows with the same problem share, for counting; default: the reason without names and numbers.
    """

    source: str
    reason: str
    kind: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Note:
    """Something to report about a row that is kept, e.g. a label that contradicts the votes."""

    source: str
    kind: str
    text: str


@dataclass(frozen=True)
class TextEncoding:
    """The encoding of a corpus's text that is neither UTF-8 nor has a byte order mark.

    `origin` is `detected` or `set in the job file`. A loader yields at most one.
    """

    name: str
    origin: str


Record = Utterance | Rejected | Note | TextEncoding


class SeenIds:
    """A set of ids in eight bytes per id, where a Python set takes ten times that.

    It stores 64-bit hashes; the chance that any two of a million different ids have the same
    hash is 3e-8.
    """

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def add_if_new(self, name: str) -> bool:
        """Whether the id is new; it is added if so."""
        key = xxh3_64_intdigest(name.encode())
        if key in self._recent:
            return False
        if self._sorted:
            index = bisect_left(self._sorted, key)
            if index < len(self._sorted) and self._sorted[index] == key:
                return False
        self._recent.add(key)
        # In proportion to what is sorted, so that all sorting takes linear time.
        if len(self._recent) >= max(_UNSORTED, len(self._sorted) // 8):
            merged = np.concatenate([self._sorted, np.array(list(self._recent), np.uint64)])
            merged.sort()
            self._sorted = array("Q", merged.tobytes())
            self._recent.clear()
        return True


def duplicate_id(name: str) -> str:
    """The reason for rejecting a row whose id an earlier row has, even if that one is rejected."""
    return f"{name}: duplicate id; only the first row with it is used"
