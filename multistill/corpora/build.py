"""Records of all corpora to one Arrow table: audio headers, labels, rejections, rater tallies.

Records become columns chunk by chunk, so that Python objects exist for one chunk only, and
columns are stored as they come (`multistill.corpora.rows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from multistill.audio.digests import Digests
from multistill.config import TasksConfig
from multistill.corpora.agreement import RaterTally
from multistill.corpora.audio_headers import Header, HeaderReader
from multistill.corpora.labels import Decision, TiePolicy, Votes, decide, one_hot, shares
from multistill.corpora.manifest import (
    COMPARED_AS,
    hash_column,
    hash_string,
    hash_strings,
    manifest_schema,
)
from multistill.corpora.paths import UNPACK_HINT, is_utf8
from multistill.corpora.records import Record, Rejected, TextEncoding, Utterance
from multistill.corpora.rejections import Notes, Rejections, kind_of
from multistill.corpora.rows import ROW_GROUP, Rows, RowWriter
from multistill.corpora.text import (
    code_points,
    control_characters,
    normal_id,
    normal_name,
    tidy,
    without_separators,
)
from multistill.tracking.logger import RunLogger
from multistill.wording import counted

CHUNK = 512  # records converted to columns at a time
_CACHED = 65_536  # names of sessions, dialogues and speakers
_LOG_EVERY = 5000  # utterances
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_REPEATED = ("corpus", "session", "dialogue", "speaker", "gender", "style", "label")
# Names that many rows share are dictionary-encoded while the table is in memory.
# What must be text: fields of an utterance, and what users call them.
_TEXTS = {
    "utterance_id": "utterance's name",
    "speaker": "speaker's name",
    "session": "session's name",
    "dialogue": "dialogue's name",
    "gender": "gender",
    "style": "style",
    "text_raw": "transcript",
    "text": "transcript",
}
_text_fields = attrgetter(*_TEXTS)


@dataclass
class BuildResult:
    """Rows and statistics of all corpora.

    Attributes:
        rows: the manifest's columns without `split`, `fold` and `group`, and `given_split`,
            `channels`, and a `hash_column` for each column of `COMPARED_AS`.
        encodings: utterances by encoding of their transcript.
        formats: utterances by audio format.
        ties: tied utterances by corpus title.
        texts: encoding of the text that is not UTF-8, by corpus title.
        dropped: rejected rows and recordings by corpus title, without ties.
        kept: utterances by corpus title.
        raters: answers of raters by corpus title.
        unread_labels: clips of unlabelled corpora that have a label, by corpus title.
    """

    rows: Rows = field(init=False)
    rejections: Rejections = field(default_factory=Rejections)
    notes: Notes = field(default_factory=Notes)
    encodings: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    ties: Counter[str] = field(default_factory=Counter)
    raters: dict[str, RaterTally] = field(default_factory=dict)
    texts: dict[str, TextEncoding] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    unread_labels: Counter[str] = field(default_factory=Counter)


def build_manifest(
    corpora: Iterable[tuple[str, Iterable[Record]]],
    ties: TiePolicy,
    classes: Sequence[str],
    logger: RunLogger | None = None,
    digests: Digests | None = None,
    tasks: TasksConfig | None = None,
    unlabelled: Collection[str] = (),
    folder: Path | None = None,
) -> BuildResult:
    """Read the audio header of every utterance, decide its label, and collect the columns.

    Args:
        corpora: title and records of each corpus, in the order of the job file.
        classes: in the order of votes.
        digests: those of files that are known already; new ones are added.
        tasks: an utterance that has one of their dimensions is kept without a class. Without
            the task `classes`, no utterance has a class. Default: the classes.
        unlabelled: titles of corpora whose utterances get neither class nor dimension.
        folder: for the file of the rows (`RowWriter`).
    """
    writer = RowWriter(_schema(classes), folder)
    chunks: list[pa.Table] = []
    waiting = 0
    result = BuildResult()
    for title, records in corpora:
        builder = _CorpusBuilder(
            title, ties, classes, result, writer.schema, digests, tasks, title in unlabelled
        )
        utterances, logged = 0, 0
        for chunk in _chunked(records, CHUNK):
            chunks.append(builder.table(chunk))
            utterances += len(chunks[-1])
            waiting += len(chunks[-1])
            if waiting >= ROW_GROUP:
                writer.write(_merge(chunks))
                chunks, waiting = [], 0
            if logger is not None and utterances // _LOG_EVERY > logged:
                logged = utterances // _LOG_EVERY
                logger.info(f"{title}: {counted(utterances, 'utterance')}")
        result.kept[title] += utterances
        if logger is not None and title in result.texts:
            text = result.texts[title]
            logger.info(
                f"{title}: text that is not UTF-8 is read as {text.name} ({text.origin}; "
                "`encoding` of the corpus changes it)"
            )
    if chunks:
        writer.write(_merge(chunks))
    result.rows = _drop_duplicate_ids(writer.rows(), result.rejections)
    return result


def _schema(classes: Sequence[str]) -> pa.Schema:
    """Of `BuildResult.rows`."""
    schema = manifest_schema(classes)
    fields = [
        field.with_type(_DICTIONARY) if field.name in _REPEATED else field
        for field in schema
        if field.name not in ("split", "fold", "group")
    ]
    more = [
        pa.field("given_split", _DICTIONARY),
        pa.field("channels", pa.int16()),
        *(pa.field(hash_column(name), pa.uint64()) for name in COMPARED_AS),
    ]
    return pa.schema([*fields, *more], metadata=schema.metadata)


def _chunked(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    source = iter(records)
    while chunk := list(islice(source, size)):
        yield chunk


def _merge(chunks: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(chunks).unify_dictionaries().combine_chunks()


class _Decisions(dict[tuple[Votes | None, str | None], int]):
    """`(votes, label)` -> index into `decisions`; a million utterances have few distinct ones.

    The votes decide, unless the corpus itself names a label.
    """

    def __init__(self, ties: TiePolicy, classes: Sequence[str]) -> None:
        super().__init__()
        self.ties = ties
        self.classes = tuple(classes)
        self.decisions: list[Decision] = []

    def __missing__(self, key: tuple[Votes | None, str | None]) -> int:
        votes, label = key
        if votes is None and label is None:
            decision = Decision(True, None, (0.0,) * len(self.classes), False)
        elif votes is None:
            assert label is not None
            decision = Decision(True, label, one_hot(label, self.classes), False)
        elif label is None:
            decision = decide(votes, self.classes, self.ties)
        else:
            decision = Decision(True, label, shares(votes), False)
        self[key] = len(self.decisions)
        self.decisions.append(decision)
        return self[key]

    def columns(self, indices: npt.NDArray[np.int64]) -> tuple[pa.Array, pa.Array]:
        """The columns `label` and `label_soft` of the decisions with these indices."""
        used, row = np.unique(indices, return_inverse=True)
        decisions = [self.decisions[index] for index in used]
        width = len(self.classes)
        soft = np.array([d.soft for d in decisions], np.float32).reshape(-1, width)
        return (
            pa.array([d.label for d in decisions], _DICTIONARY).take(pa.array(row)),
            pa.FixedSizeListArray.from_arrays(pa.array(soft[row].ravel()), width),
        )


class _CorpusBuilder:
    """Turns chunks of one corpus's records into tables; statistics are added to `result`."""

    def __init__(
        self,
        title: str,
        ties: TiePolicy,
        classes: Sequence[str],
        result: BuildResult,
        schema: pa.Schema,
        digests: Digests | None,
        tasks: TasksConfig | None,
        unlabelled: bool,
    ) -> None:
        self.title, self.unlabelled = title, unlabelled
        self.dimensions = tasks.dimensions if tasks else ()
        self.has_classes = tasks is None or tasks.classes is not None
        self.result = result
        self.raters = result.raters.setdefault(title, RaterTally(classes))
        self.decisions = _Decisions(ties, classes)
        self.schema = schema
        self.header_reader = HeaderReader(digests)
        self._name = lru_cache(_CACHED)(normal_name)

    def table(self, records: Sequence[Record]) -> pa.Table:
        paths = [record.audio_path for record in records if isinstance(record, Utterance)]
        headers = iter(self.header_reader.read(paths))
        kept: list[tuple[Utterance, Header, int]] = []
        for record in records:
            if isinstance(record, Utterance):
                written, record = record, self._normalized(record)
                header = self._valid_header(record, next(headers))
                if header is None or not self._is_text(record, written):
                    continue
                decision = self._decide(record)
                if decision is not None:
                    kept.append((record, header, decision))
            elif isinstance(record, Rejected):
                self._reject("corpus", record.source, record.reason, record.kind)
            elif isinstance(record, TextEncoding):
                self.result.texts[self.title] = record
            else:
                self.result.notes.add(f"{self.title}/{record.source}", record.kind, record.text)
        return self._columns(kept) if kept else self.schema.empty_table()

    def _reject(self, category: str, source: str, reason: str, kind: str | None = None) -> None:
        self.result.dropped[self.title] += category != "tie"
        self.result.rejections.add(category, f"{self.title}/{source}", reason, kind)

    def _normalized(self, utterance: Utterance) -> Utterance:
        """The utterance with the names that are compared in one form each."""
        session, dialogue, speaker = map(
            self._name, (utterance.session, utterance.dialogue, utterance.speaker)
        )
        if self.unlabelled:
            has_label = utterance.label is not None or utterance.votes is not None
            self.result.unread_labels[self.title] += has_label
            utterance = utterance._replace(valence=None, arousal=None, dominance=None)
        if self.unlabelled or not self.has_classes:
            utterance = utterance._replace(votes=None, label=None, ratings=None)
        return utterance._replace(
            utterance_id=normal_id(utterance.utterance_id),
            session=session,
            dialogue=dialogue,
            speaker=speaker,
            text_raw=without_separators(utterance.text_raw),
            text=tidy(utterance.text),
        )

    def _is_text(self, utterance: Utterance, written: Utterance) -> bool:
        """Whether names and transcript are text; an utterance of which one is not is rejected.

        Args:
            written: the utterance before its names were normalised.
        """
        texts = _text_fields(utterance)
        if "".join(filter(None, texts)).isprintable() and not any(
            before and not text for text, before in zip(texts, _text_fields(written), strict=True)
        ):
            return True  # nearly all
        for name, what in _TEXTS.items():
            text = getattr(utterance, name) or ""
            control = control_characters(text)
            if control:
                kind, characters = "has control characters", control
                reason = "so its file is damaged or in another encoding"
            elif not text and (characters := list(getattr(written, name) or "")):
                kind = "has only characters that show nothing"
                reason = "so it names nothing"
            else:
                continue
            self._reject(
                what if what == "transcript" else "name",
                utterance.utterance_id,
                f"the {what} {kind} ({code_points(characters)}), {reason}",
                f"the {what} {kind}",
            )
            return False
        return True

    def _valid_header(self, utterance: Utterance, header: Header | str) -> Header | None:
        """The audio header, None if the utterance is rejected for its file."""
        name, path = utterance.utterance_id, utterance.audio_path
        if not is_utf8(path):
            reason = f"the name {path} is not UTF-8: {UNPACK_HINT}"
            self._reject("file name", name, reason, "the file name is not UTF-8")
            return None
        if isinstance(header, str):
            self._reject("unreadable audio", name, f"{path}: {header}", kind_of(header))
            return None
        return header

    def _decide(self, utterance: Utterance) -> int | None:
        """The index of the label decision, None if the utterance is rejected."""
        if (
            not self.unlabelled
            and utterance.votes is None
            and utterance.label is None
            and all(getattr(utterance, name) is None for name in self.dimensions)
        ):
            names = ", ".join(("label", "votes") * self.has_classes + self.dimensions)
            self._reject("no label", utterance.utterance_id, f"it has none of {names}")
            return None
        index = self.decisions[utterance.votes, utterance.label]
        decision = self.decisions.decisions[index]
        if decision.tied:
            self.result.ties[self.title] += 1
            if not decision.keep:
                reason = "several classes have the most votes"
                self._reject("tie", utterance.utterance_id, reason)
                return None
        if utterance.ratings is not None:
            self.raters.add(utterance.ratings, utterance.votes)
        return index

    def _columns(self, kept: Sequence[tuple[Utterance, Header, int]]) -> pa.Table:
        utterances, headers, decisions = zip(*kept, strict=True)
        values: dict[str, Any] = dict(
            zip(Utterance._fields, zip(*utterances, strict=True), strict=True)
        )
        head: dict[str, Any] = dict(zip(Header._fields, zip(*headers, strict=True), strict=True))
        self.result.formats.update(head["encoding"])
        self.result.encodings.update(name for name in values["encoding"] if name is not None)
        label, soft = self.decisions.columns(np.array(decisions))
        samples, rate = np.array(head["num_samples"]), np.array(head["sample_rate"])
        prefix = f"{self.title}/"

        def prefixed(names: Sequence[str]) -> list[str]:
            return [prefix + name if name else "" for name in names]

        columns: dict[str, Any] = {
            "utterance_id": [prefix + name for name in values["utterance_id"]],
            "corpus": [self.title] * len(kept),
            "session": prefixed(values["session"]),
            "dialogue": prefixed(values["dialogue"]),
            "turn": values["turn"],
            "speaker": prefixed(values["speaker"]),
            "gender": values["gender"],
            "age": values["age"],
            "style": values["style"],
            "audio_path": values["audio_path"],
            "num_samples": samples,
            "sample_rate": rate,
            "duration_s": samples / rate,
            "text": values["text"],
            "text_raw": values["text_raw"],
            "votes": values["votes"],
            "label": label,
            "label_soft": soft,
            "valence": values["valence"],
            "arousal": values["arousal"],
            "dominance": values["dominance"],
            "audio_digest": head["digest"],
            "given_split": values["split"],
            "channels": head["channels"],
        }
        for name, normalize in COMPARED_AS.items():
            columns[hash_column(name)] = [hash_string(normalize(each)) for each in columns[name]]
        arrays = [pa.array(columns[field.name], field.type) for field in self.schema]
        return pa.table(arrays, schema=self.schema)


def _drop_duplicate_ids(rows: Rows, rejections: Rejections) -> Rows:
    """Keep the first row of each utterance id and reject the others."""
    hashes, code, times = np.unique(
        hash_strings(rows["utterance_id"]), return_inverse=True, return_counts=True
    )
    if len(hashes) == len(rows):
        return rows
    keep = np.ones(len(rows), bool)
    seen: set[str] = set()
    alike = np.flatnonzero(times[code] > 1)
    for row, name in zip(alike, rows.take("utterance_id", alike), strict=True):
        if name in seen:
            keep[row] = False
            rejections.add("duplicate id", name, "another utterance has this id")
        seen.add(name)
    return rows.filter(keep)
