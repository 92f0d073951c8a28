"""Records of all corpora to one Arrow table, chunk by chunk: headers, labels, tallies.

Python objects live for one chunk only; what stays is the manifest's own columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from multistill.corpora.audio import Header, map_files, read_header
from multistill.corpora.labels import Decision, TiePolicy, decide, one_hot
from multistill.corpora.records import Note, Record, Rejected, Utterance
from multistill.corpora.schema import MANIFEST_SCHEMA, REJECTED_SCHEMA

_EXAMPLES = 10
_ROWS = 2048
_WORKING = pa.schema(
    [
        *(field for field in MANIFEST_SCHEMA if field.name not in ("split", "fold")),
        pa.field("given_split", pa.string()),
        pa.field("channels", pa.int16()),
    ]
)
_decide = lru_cache(maxsize=65_536)(decide)


class Examples:
    """How often something was found, with the first few cases."""

    def __init__(self) -> None:
        self.count = 0
        self.cases: list[str] = []

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.cases) < _EXAMPLES:
            self.cases.append(case)

    def json(self) -> dict[str, Any]:
        return {"count": self.count, "examples": self.cases}


class Rejections:
    """What is left out, as the columns of `rejected.parquet`, and how many of each sort."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.reasons: list[str] = []
        self.sorts: Counter[str] = Counter()

    def add(self, sort: str, source: str, reason: str) -> None:
        self.sorts[sort] += 1
        self.sources.append(source)
        self.reasons.append(reason)

    def __len__(self) -> int:
        return len(self.sources)

    def table(self) -> pa.Table:
        return pa.table([self.sources, self.reasons], schema=REJECTED_SCHEMA)


class RaterTally:
    """Each rater's agreement with the rest, by the rater's place in the corpus."""

    def __init__(self) -> None:
        self.agreed: Counter[int] = Counter()
        self.asked: Counter[int] = Counter()

    def add(self, ratings: Sequence[str | None]) -> None:
        """Counts a rater where all others have one winner."""
        answers = Counter(answer for answer in ratings if answer is not None)
        for rater, answer in enumerate(ratings):
            if answer is None:
                continue
            answers[answer] -= 1
            top = max(answers.values())
            first = [name for name, votes in answers.items() if votes == top]
            answers[answer] += 1
            if top > 0 and len(first) == 1:
                self.asked[rater] += 1
                self.agreed[rater] += first[0] == answer

    def json(self) -> list[dict[str, Any]]:
        return [
            {"rater": rater + 1, "answers": asked, "accuracy": self.agreed[rater] / asked}
            for rater, asked in sorted(self.asked.items())
        ]


@dataclass
class Gathered:
    """All that the corpora gave: `rows` has `_WORKING`'s columns."""

    rows: pa.Table
    rejections: Rejections
    notes: dict[str, Examples] = field(default_factory=dict)
    encodings: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    ties: Counter[str] = field(default_factory=Counter)
    raters: dict[str, RaterTally] = field(default_factory=dict)

    def reject(self, sort: str, title: str, utterance: Utterance, reason: str) -> None:
        self.rejections.add(sort, f"{title}/{utterance.utterance_id}", reason)


def gather(
    corpora: Iterable[tuple[str, Iterable[Record]]], ties: TiePolicy, workers: int | None = None
) -> Gathered:
    """Read every record's audio header and label it.

    Args:
        corpora: title and records of each corpus, in the order of the job file.
        workers: processes that read headers; the order of the rows is the corpora's own.
    """
    result = Gathered(_WORKING.empty_table(), Rejections())
    parts: list[pa.Table] = []
    rows: list[tuple[str, Utterance, Header, Decision]] = []
    for title, records in corpora:
        utterances = _utterances(title, records, result)
        for utterance, header in map_files(read_header, utterances, workers):
            if isinstance(header, str):
                reason = f"{utterance.audio_path} {header}"
                result.reject("unreadable audio", title, utterance, reason)
                continue
            decision = _decision(utterance, ties)
            if decision.tied:
                result.ties[title] += 1
            if not decision.keep:
                result.reject("tie", title, utterance, "several classes have the most votes")
                continue
            if utterance.ratings:
                result.raters.setdefault(title, RaterTally()).add(utterance.ratings)
            rows.append((title, utterance, header, decision))
            if len(rows) == _ROWS:
                parts.append(_table(rows, result))
                rows = []
    parts.append(_table(rows, result))
    result.rows = _first_of_each(pa.concat_tables(parts), result.rejections)
    return result


def _utterances(
    title: str, records: Iterable[Record], result: Gathered
) -> Iterator[tuple[Utterance, Path]]:
    for record in records:
        if isinstance(record, Utterance):
            yield record, record.audio_path
        elif isinstance(record, Rejected):
            result.rejections.add("corpus", f"{title}/{record.source}", record.reason)
        elif isinstance(record, Note):
            found = result.notes.setdefault(record.kind, Examples())
            found.add(f"{title}/{record.source}: {record.text}")


def _decision(utterance: Utterance, ties: TiePolicy) -> Decision:
    """Votes decide; a label that the corpus itself names goes before their winner."""
    if utterance.votes is None:
        assert utterance.label is not None, "loaders give votes or a label"
        return Decision(True, utterance.label, one_hot(utterance.label), False)
    found = _decide(utterance.votes, ties)
    if utterance.label is None:
        return found
    return Decision(True, utterance.label, _decide(utterance.votes, "soft").soft, False)


def _table(rows: Sequence[tuple[str, Utterance, Header, Decision]], result: Gathered) -> pa.Table:
    result.formats.update(header.encoding for _, _, header, _ in rows)
    result.encodings.update(u.encoding for _, u, _, _ in rows if u.encoding is not None)

    def told(title: str, name: str) -> str:
        return f"{title}/{name}" if name else ""

    columns: dict[str, Sequence[Any] | npt.NDArray[Any]] = {
        "utterance_id": [f"{t}/{u.utterance_id}" for t, u, _, _ in rows],
        "corpus": [t for t, _, _, _ in rows],
        "session": [told(t, u.session) for t, u, _, _ in rows],
        "dialogue": [told(t, u.dialogue) for t, u, _, _ in rows],
        "turn": [u.turn for _, u, _, _ in rows],
        "speaker": [told(t, u.speaker) for t, u, _, _ in rows],
        "gender": [u.gender for _, u, _, _ in rows],
        "audio_path": [str(u.audio_path.absolute()) for _, u, _, _ in rows],
        "num_samples": [h.num_samples for _, _, h, _ in rows],
        "sample_rate": [h.sample_rate for _, _, h, _ in rows],
        "duration_s": [h.num_samples / h.sample_rate for _, _, h, _ in rows],
        "text": [u.text for _, u, _, _ in rows],
        "text_raw": [u.text_raw for _, u, _, _ in rows],
        "votes": [u.votes for _, u, _, _ in rows],
        "label": [d.label for _, _, _, d in rows],
        "label_soft": [d.soft for _, _, _, d in rows],
        "valence": [u.valence for _, u, _, _ in rows],
        "arousal": [u.arousal for _, u, _, _ in rows],
        "audio_digest": [h.digest for _, _, h, _ in rows],
        "given_split": [u.split for _, u, _, _ in rows],
        "channels": [h.channels for _, _, h, _ in rows],
    }
    return pa.table(
        [pa.array(columns[field.name], field.type) for field in _WORKING], schema=_WORKING
    )


def _first_of_each(rows: pa.Table, rejections: Rejections) -> pa.Table:
    """Drop rows whose id another row already has; ids must be unique."""
    encoded = rows["utterance_id"].dictionary_encode()  # one dictionary over all chunks
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks] or [[]])
    if len(np.unique(codes)) == len(rows):
        return rows
    _, first = np.unique(codes, return_index=True)
    keep = np.zeros(len(rows), bool)
    keep[first] = True
    for at in np.flatnonzero(~keep):
        name = rows["utterance_id"][int(at)].as_py()
        rejections.add("duplicate id", name, "another utterance has this id")
    return rows.filter(pa.array(keep))
