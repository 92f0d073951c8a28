"""Rows of all corpora to one Arrow table, chunk by chunk: records, headers, labels, tallies.

Python objects live for one chunk only, in the process that makes it; what stays is the
manifest's own columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from multistill.config import CLASSES
from multistill.corpora.agreement import RaterTally
from multistill.corpora.audio import Header, read_header
from multistill.corpora.labels import Decision, TiePolicy, Votes, decide, one_hot, shares
from multistill.corpora.manifest import MANIFEST_SCHEMA, keys
from multistill.corpora.parallel import chunked, in_order
from multistill.corpora.paths import UNPACK, is_utf8
from multistill.corpora.records import Record, Rejected, Rows, Utterance
from multistill.corpora.rejections import Notes, Rejections
from multistill.tracking.logger import RunLogger

CHUNK = 512  # rows at a time: half a second where a file takes a millisecond
_MERGED = 128  # chunks held as one
_SPOKEN = 5000  # utterances between two words on progress
_NAME = pa.dictionary(pa.int32(), pa.string())
_REPEATED = ("corpus", "session", "dialogue", "speaker", "gender", "label")
# SeenIds that many rows share are held once while the corpus is in memory.
_WORKING = pa.schema(
    [
        *(
            field.with_type(_NAME) if field.name in _REPEATED else field
            for field in MANIFEST_SCHEMA
            if field.name not in ("split", "fold")
        ),
        pa.field("given_split", _NAME),
        pa.field("channels", pa.int16()),
    ]
)


@dataclass
class Gathered:
    """What corpora, or some rows of one, gave; `rows` has `_WORKING`'s columns."""

    rows: pa.Table
    rejections: Rejections
    notes: Notes = field(default_factory=Notes)
    encodings: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    ties: Counter[str] = field(default_factory=Counter)
    raters: dict[str, RaterTally] = field(default_factory=dict)

    def reject(self, sort: str, title: str, utterance: Utterance, reason: str) -> None:
        self.rejections.add(sort, f"{title}/{utterance.utterance_id}", reason)

    def merge(self, other: Gathered) -> None:
        """Add what was counted elsewhere; not the rows."""
        self.rejections.merge(other.rejections)
        self.notes.merge(other.notes)
        self.encodings.update(other.encodings)
        self.formats.update(other.formats)
        self.ties.update(other.ties)
        for title, tally in other.raters.items():
            self.raters.setdefault(title, RaterTally()).merge(tally)


def build_manifest(
    corpora: Iterable[tuple[str, Rows]],
    ties: TiePolicy,
    workers: int | None = None,
    logger: RunLogger | None = None,
) -> Gathered:
    """Make records of rows, read every record's audio header and label it.

    Args:
        corpora: title and rows of each corpus, in the order of the job file.
        workers: processes that do it; the order of the rows is the corpora's own.
    """
    result = Gathered(_WORKING.empty_table(), Rejections())
    parts: list[pa.Table] = [result.rows]
    chunks: list[pa.Table] = []
    for title, rows in corpora:
        made, said = 0, 0
        for found in in_order(_Maker(title, ties, rows.make), chunked(rows.items, CHUNK), workers):
            chunks.append(found.rows)
            if len(chunks) == _MERGED:
                parts.append(_merged(chunks))
                chunks.clear()
            result.merge(found)
            made += len(found.rows)
            if logger is not None and made // _SPOKEN > said:
                said = made // _SPOKEN
                logger.info(f"{title}: {made} utterances")
    table = pa.concat_tables([*parts, *chunks]).unify_dictionaries()
    result.rows = _first_of_each(table, result.rejections)
    return result


def _merged(chunks: Sequence[pa.Table]) -> pa.Table:
    # A column's chunk costs hundreds of bytes beside its values.
    return pa.concat_tables(chunks).unify_dictionaries().combine_chunks()


class _Decisions(dict[tuple[Votes | None, str | None], int]):
    """`(votes, label)` -> number of its decision; a million utterances have few of them.

    Votes decide; a label that the corpus itself names goes before their winner.
    """

    def __init__(self, ties: TiePolicy) -> None:
        super().__init__()
        self.ties = ties
        self.made: list[Decision] = []

    def __missing__(self, said: tuple[Votes | None, str | None]) -> int:
        votes, label = said
        if votes is None:
            assert label is not None, "loaders give votes or a label"
            made = Decision(True, label, one_hot(label), False)
        elif label is None:
            made = decide(votes, self.ties)
        else:
            made = Decision(True, label, shares(votes), False)
        self[said] = len(self.made)
        self.made.append(made)
        return self[said]

    def columns(self, numbers: npt.NDArray[np.int64]) -> tuple[pa.Array, pa.Array]:
        """Label and shares of decisions."""
        used, at = np.unique(numbers, return_inverse=True)
        made = [self.made[number] for number in used]
        soft = np.array([one.soft for one in made], np.float32).reshape(-1, len(CLASSES))
        return (
            pa.array([one.label for one in made], _NAME).take(pa.array(at)),
            pa.FixedSizeListArray.from_arrays(pa.array(soft[at].ravel()), len(CLASSES)),
        )


class _Maker:
    """Rows of one corpus -> what they give; what it remembers spares parsing votes again."""

    def __init__(
        self, title: str, ties: TiePolicy, make: Callable[[Sequence[Any]], Iterable[Record]]
    ) -> None:
        self.made_of = title, ties, make
        self.title = title
        self.make = make
        self.decisions = _Decisions(ties)

    def __reduce__(self) -> tuple[type[_Maker], tuple[Any, ...]]:
        return _Maker, self.made_of

    def __call__(self, rows: Sequence[Any]) -> Gathered:
        result = Gathered(_WORKING.empty_table(), Rejections())
        result.raters[self.title] = RaterTally()
        kept: list[tuple[Utterance, Header, int]] = []
        for record in self.make(rows):
            if isinstance(record, Utterance):
                if found := self._header_and_label(record, result):
                    kept.append((record, *found))
            elif isinstance(record, Rejected):
                result.rejections.add("corpus", f"{self.title}/{record.source}", record.reason)
            else:
                result.notes.add(f"{self.title}/{record.source}", record.kind, record.text)
        if kept:
            result.rows = _table(self.title, kept, self.decisions, result)
        return result

    def _header_and_label(self, said: Utterance, result: Gathered) -> tuple[Header, int] | None:
        """The header and the number of the decision; None for what is left out."""
        if not is_utf8(said.audio_path):
            reason = f"the name {said.audio_path} is not UTF-8: {UNPACK}"
            result.reject("file name", self.title, said, reason)
            return None
        header = read_header(said.audio_path)
        if isinstance(header, str):
            reason = f"{said.audio_path} {header}"
            result.reject("unreadable audio", self.title, said, reason)
            return None
        number = self.decisions[said.votes, said.label]
        made = self.decisions.made[number]
        if made.tied:
            result.ties[self.title] += 1
            if not made.keep:
                result.reject("tie", self.title, said, "several classes have the most votes")
                return None
        if said.ratings is not None:
            result.raters[self.title].add(said.ratings, said.votes)
        return header, number


def _table(
    title: str,
    kept: Sequence[tuple[Utterance, Header, int]],
    decisions: _Decisions,
    result: Gathered,
) -> pa.Table:
    """The utterances of a chunk, column by column."""
    utterances, headers, numbers = zip(*kept, strict=True)
    said: dict[str, Any] = dict(zip(Utterance._fields, zip(*utterances, strict=True), strict=True))
    head: dict[str, Any] = dict(zip(Header._fields, zip(*headers, strict=True), strict=True))
    result.formats.update(head["encoding"])
    result.encodings.update(name for name in said["encoding"] if name is not None)
    label, soft = decisions.columns(np.array(numbers))
    samples, rate = np.array(head["num_samples"]), np.array(head["sample_rate"])
    prefix = f"{title}/"

    def told(names: Sequence[str]) -> list[str]:
        return [prefix + name if name else "" for name in names]

    text = pa.array(said["text"], pa.string())
    columns = {
        "utterance_id": [prefix + name for name in said["utterance_id"]],
        "corpus": [title] * len(kept),
        "session": told(said["session"]),
        "dialogue": told(said["dialogue"]),
        "turn": said["turn"],
        "speaker": told(said["speaker"]),
        "gender": said["gender"],
        "audio_path": said["audio_path"],
        "num_samples": samples,
        "sample_rate": rate,
        "duration_s": samples / rate,
        "text": text,
        "text_raw": text if said["text"] == said["text_raw"] else said["text_raw"],
        "votes": said["votes"],
        "label": label,
        "label_soft": soft,
        "valence": said["valence"],
        "arousal": said["arousal"],
        "audio_digest": head["digest"],
        "given_split": said["split"],
        "channels": head["channels"],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in _WORKING]
    return pa.table(arrays, schema=_WORKING)


def _first_of_each(rows: pa.Table, rejections: Rejections) -> pa.Table:
    """Drop rows whose id another row already has; ids must be unique."""
    found, code, times = np.unique(
        keys(rows["utterance_id"]), return_inverse=True, return_counts=True
    )
    if len(found) == len(rows):
        return rows
    keep = np.ones(len(rows), bool)
    seen: set[str] = set()
    for at in np.flatnonzero(times[code] > 1):
        name = rows["utterance_id"][int(at)].as_py()
        if name in seen:
            keep[at] = False
            rejections.add("duplicate id", name, "another utterance has this id")
        seen.add(name)
    return rows.filter(pa.array(keep))
