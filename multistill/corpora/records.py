"""What a corpus loader yields: an utterance as the corpus tells it, or why a clip is left out.

Loaders read annotations, transcripts and file names only. Audio headers, label
arithmetic, splits and checks are common to all corpora and come after them
(`multistill.corpora.prepare`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from multistill.config import CorpusConfig


@dataclass(frozen=True)
class Utterance:
    """One clip with what the corpus says of it.

    Attributes:
        utterance_id: unique inside the corpus; the manifest prefixes the corpus title.
        votes: counts in class order, or None where the corpus has no raters.
        label: the class the corpus itself names (one label corpora), or None: then the
            votes decide.
        encoding: of the transcript file, as found by trying; None where there is no file.
        ratings: one class name (or None) per rater, for agreement; empty where unknown.
    """

    utterance_id: str
    audio_path: Path
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
    ratings: tuple[str | None, ...] = ()
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


class Loader(Protocol):
    """Reads one corpus in a fixed order. Raises UsageError where the folder is not the corpus."""

    def __call__(self, config: CorpusConfig, root: Path) -> Iterator[Record]: ...
