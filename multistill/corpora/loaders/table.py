"""A user's own corpus from one CSV or Parquet table; see docs/corpora.md for an example.

Columns have the names in `COLUMNS`, or are mapped to them by the job file's `columns`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from multistill.config import DIMENSIONS, CorpusConfig
from multistill.config.tasks import SCALE
from multistill.corpora.labels import LabelReader, count, leaders, split_tie
from multistill.corpora.loaders.csv_parquet import Table, column_name, open_table
from multistill.corpora.loaders.fields import (
    RowError,
    hashable,
    parse_age,
    parse_count,
    parse_gender,
    parse_rating,
    parse_style,
    parse_turn,
    split_list,
    stem,
    to_text,
)
from multistill.corpora.paths import FileResolver, audio_folder
from multistill.corpora.records import Note, Record, Rejected, SeenIds, Utterance, duplicate_id
from multistill.corpora.split import PART_ALIASES
from multistill.corpora.text import CorpusText, UndecodableError, normal_id, normal_name, tidy
from multistill.errors import UsageError

COLUMNS = (
    "utterance_id",
    "audio_path",
    "text",
    "text_path",
    "label",
    "votes",
    "speaker",
    "session",
    "dialogue",
    "turn",
    "gender",
    *DIMENSIONS,
    "split",
    "age",
    "style",
)
"""Known column names, in addition to `rater_...`, one column per rater with the chosen label, and
the names of classes and of emotions merged into them, one column each with its number of votes."""

_RATER = "rater_"
MOST_TRANSCRIPTS = 4096  # read to decide the encoding of a corpus
_CACHED = 65_536  # distinct targets and ratings kept
_SCALAR_COLUMNS = (
    "age",
    "style",
    "audio_path",
    "utterance_id",
    "text",
    "text_path",
    "dialogue",
    "turn",
    "speaker",
    "session",
    "gender",
    "split",
    *DIMENSIONS,
)


def load(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """Yield the table's rows in its order; `root` is the table file."""
    audio_root = audio_folder(config, root)
    transcripts: list[Path] = []
    texts = CorpusText(config.title, config.encoding, lambda: [root, *transcripts])
    table = open_table(root, root.name, texts)
    names = _map_columns(config, table, labels)
    table.require_text(names.values(), lists=[names["votes"]] if "votes" in names else [])
    if not audio_root.is_dir():
        raise UsageError(
            f"corpus `{config.title}`: looked for the folder {audio_root} (audio_root), "
            "which does not exist"
        )
    if "text_path" in names:
        transcripts += _transcripts(table, names["text_path"], audio_root)
        # With the transcripts it may be another one than the table alone has shown.
        texts = CorpusText(config.title, config.encoding, lambda: [root, *transcripts])
        texts.decide()
        table = open_table(root, root.name, texts)
    low, high = config.scale or SCALE
    return _records(table, _RowParser(table, names, audio_root, texts, labels, (low, high)), texts)


def _transcripts(table: Table, column: str, folder: Path) -> list[Path]:
    """The transcript files that a table names, a sample of them if there are very many."""
    index, resolver = table.header.index(column), FileResolver(folder)
    paths: list[Path] = []
    for item in table.rows():
        if isinstance(item, Rejected) or not (name := to_text(item[1][index])):
            continue
        try:
            paths.append(Path(resolver.resolve(name)))
        except ValueError:  # rejected when the row is read
            continue
        if len(paths) == MOST_TRANSCRIPTS:
            break
    return paths


def _records(table: Table, parser: _RowParser, texts: CorpusText) -> Iterator[Record]:
    yield from texts.records()
    seen = SeenIds()
    turns: Counter[str] = Counter()
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        source, cells = item
        turn = 0
        if parser.counts_turns and (dialogue := normal_name(parser.dialogue(cells))):
            # Rows that are rejected below count too: they are turns of the dialogue all the same.
            turn = turns[dialogue]
            turns[dialogue] += 1
        name = normal_id(parser.utterance_id(cells))
        if name and not seen.add_if_new(name):
            yield Rejected(source, duplicate_id(name))
            continue
        try:
            yield from parser.records(source, turn, cells)
        except RowError as error:
            yield Rejected(source, str(error))


def _map_columns(config: CorpusConfig, table: Table, labels: LabelReader) -> dict[str, str]:
    """Column name of multistill -> the table's, for the columns that the table has."""
    counts = counted(labels)
    columns = (*COLUMNS, *counts)
    unread = DIMENSIONS if labels.unlabelled else ()
    for column, name in config.columns.items():
        if column not in columns and not column.startswith(_RATER):
            near = difflib.get_close_matches(column, columns, 1)
            raise UsageError(
                f"corpus `{config.title}`: columns.{column} is not a known column"
                + (f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(columns)}")
            )
        table.require([column_name(name)])
    raters = [name for name in table.header if name.startswith(_RATER)]
    known = dict.fromkeys([*columns, *raters, *config.columns])
    names = {column: column_name(config.columns.get(column, column)) for column in known}
    names = {
        column: name
        for column, name in names.items()
        if name in table.header and column not in unread
    }
    table.require([] if "audio_path" in names else ["audio_path"])
    if labels.unlabelled:
        return names
    targets = {"label", "votes", *counts, *labels.dimensions}
    if labels.without_classes and not set(labels.dimensions) & names.keys():
        raise UsageError(
            f"{table.path}: row 1: no column {' or '.join(labels.dimensions)}, and the job has no "
            f"other tasks; add one, or name its column in `columns`; found "
            + ", ".join(table.header)
        )
    if not any(c in targets or c.startswith(_RATER) for c in names):
        raise UsageError(
            f"{table.path}: row 1: no labels; add a column `label`, `votes`, counts named "
            f"{', '.join(counts)}, or one `{_RATER}...` per rater; found "
            + ", ".join(table.header)
            + (f" (tasks: {', '.join(labels.dimensions)})" if labels.dimensions else "")
        )
    if not {"speaker", "session"} & names.keys():
        raise UsageError(
            f"{table.path}: row 1: no column `speaker` or `session`; without one, training and "
            f"test may share a voice; found {', '.join(table.header)}"
        )
    return names


def counted(labels: LabelReader) -> dict[str, str]:
    """Names that a column of counts may have -> its class: none that another column has."""
    names = labels.labels.names()
    return {name: label for name, label in names.items() if name not in COLUMNS}


class _NoClassError(RowError):
    """A label is none of the job's classes."""


class _Target(NamedTuple):
    """The parsed label fields of a row; see `Utterance`.

    Attributes:
        notes: `(kind, text)`.
        no_class: why the row has no class. It is rejected then, unless it has a dimension.
    """

    votes: tuple[int, ...] | None
    label: str | None
    ratings: tuple[str | None, ...] | None
    notes: tuple[tuple[str, str], ...]
    no_class: str | None = None


class _RowParser:
    """Turns rows into records; written for speed, at about the cost of reading an audio header.

    A million rows have few distinct label fields, so the parsed ones are cached.
    """

    def __init__(
        self,
        table: Table,
        names: Mapping[str, str],
        audio_root: Path,
        texts: CorpusText,
        labels: LabelReader,
        scale: tuple[float, float],
    ) -> None:
        index = {column: table.header.index(name) for column, name in names.items()}
        absent = len(table.header)  # where `records` appends an empty cell
        self.labels = labels
        self.scalars = itemgetter(*(index.get(column, absent) for column in _SCALAR_COLUMNS))
        self.raters = sorted(column for column in names if column.startswith(_RATER))
        self.count_columns = {n: label for n, label in counted(labels).items() if n in names}
        self.target_columns = ("label", "votes", *self.raters, *self.count_columns)
        self.target_cells = itemgetter(*(index.get(c, absent) for c in self.target_columns))
        self.id_index, self.audio_index = index.get("utterance_id"), index["audio_path"]
        self.dialogue_index = index.get("dialogue", -1)
        self.has_turns = "turn" in names
        self.counts_turns = "dialogue" in names and not self.has_turns
        self.encoding = table.encoding
        self.texts = texts
        self.to_text: Callable[[Any], str] = str.strip if table.encoding else to_text
        self.resolver = FileResolver(audio_root)
        self.prefix = f"{audio_root.absolute()}/"
        self.target = lru_cache(_CACHED)(self._target)
        self.rating = lru_cache(_CACHED)(partial(parse_rating, scale=scale))
        self.age = lru_cache(_CACHED)(parse_age)

    def utterance_id(self, cells: Sequence[Any]) -> str:
        """The row's utterance id; empty if it has neither id nor audio path.

        Of an absolute audio path, the part below the root: ids are in reports that are shown to
        others, and the same on another machine.
        """
        name = "" if self.id_index is None else self.to_text(cells[self.id_index])
        return name or stem(self.to_text(cells[self.audio_index]).removeprefix(self.prefix))

    def dialogue(self, cells: Sequence[Any]) -> str:
        return self.to_text(cells[self.dialogue_index])

    def records(self, source: str, turn: int, cells: Sequence[Any]) -> Iterator[Record]:
        """Yield the row's notes and its utterance.

        Args:
            turn: used if the table has no column `turn`.

        Raises:
            RowError: why the row has to be rejected.
        """
        cells = (*cells, "")
        (
            age_field,
            style,
            file,
            name,
            text,
            text_path,
            dialogue,
            turn_field,
            speaker,
            session,
            gender,
            split,
            *rating_fields,
        ) = map(self.to_text, self.scalars(cells))
        if self.has_turns:
            turn = parse_turn(turn_field)
        if not file:
            raise RowError("no value in column `audio_path`")
        audio = self._resolve(file)
        name = name or stem(file.removeprefix(self.prefix))
        text_raw, encoding = self._transcript(text_path) if text_path else (text, self.encoding)
        target_cells = self.target_cells(cells)
        if self.encoding is None:
            target_cells = tuple([hashable(cell) for cell in target_cells])
        target = self.target(target_cells)
        if not speaker and not session and not self.labels.unlabelled:
            raise RowError("no value in column `speaker` or `session`")
        split = normal_name(split)
        ratings = dict(zip(DIMENSIONS, map(self.rating, rating_fields, DIMENSIONS), strict=True))
        values = {dimension: rating.value for dimension, rating in ratings.items()}
        if target.no_class and all(values[name] is None for name in self.labels.dimensions):
            raise RowError(target.no_class)
        notes = [note for rating in ratings.values() for note in rating.notes]
        age = self.age(age_field)
        for kind, note in (*target.notes, *notes, *age.notes):
            yield Note(source, kind, f"{name}: {note}")
        yield Utterance(
            name,
            audio,
            session or speaker,
            dialogue or name,
            turn,
            speaker or session,
            text_raw,
            tidy(text_raw),
            parse_gender(normal_name(gender)),
            target.votes,
            target.label,
            values["valence"],
            values["arousal"],
            values["dominance"],
            encoding,
            target.ratings,
            PART_ALIASES.get(split.casefold(), split) if split else None,
            age.value,
            parse_style(normal_name(style)),
        )

    def _resolve(self, name: str) -> str:
        try:
            return self.resolver.resolve(name)
        except ValueError as error:
            if name.startswith("/") and not name.startswith(self.prefix):
                raise RowError(
                    f"leaves the corpus folder: {name}; set `audio_root` of the corpus to a folder "
                    "that all paths of the table start from"
                ) from error
            raise RowError(str(error)) from error

    def _transcript(self, name: str) -> tuple[str, str]:
        try:
            return self.texts.read(self._resolve(name))
        except (UndecodableError, OSError) as error:
            raise RowError(f"{name}: {error}") from error

    def _target(self, cells: tuple[Any, ...]) -> _Target:
        if self.labels.unlabelled:
            has_label = any(
                cell if isinstance(cell, tuple) else self.to_text(cell) for cell in cells
            )
            return _Target(None, self.labels.classes[0] if has_label else None, None, ())
        if self.labels.without_classes:
            names = ", ".join(self.labels.dimensions)
            return _Target(None, None, None, (), no_class=f"no value of {names}")
        fields = dict(zip(self.target_columns, cells, strict=True))
        notes: list[tuple[str, str]] = []
        ratings: list[str | None] = []
        for rater in self.raters:
            vote = self.to_text(fields[rater])
            ratings.append(self.labels[vote])
            if vote and ratings[-1] is None:
                notes.append(("unknown vote", f"the vote for {vote} is not counted"))
        votes = self._votes(fields)
        if votes is None and self.raters:
            votes = count(ratings, self.labels.classes)
        if votes is not None and not any(votes):
            votes = None
        try:
            label, tied_votes = self._label(self.to_text(fields["label"]))
        except _NoClassError as error:
            if not self.labels.dimensions:
                raise
            notes.append(("no class", f"only the dimensions are used: {error}"))
            return _Target(None, None, None, tuple(notes), no_class=str(error))
        if label is None and votes is None:
            if tied_votes is None:
                return _Target(None, None, None, tuple(notes), no_class="no label and no votes")
            return _Target(tied_votes, None, None, tuple(notes))
        most = leaders(votes, self.labels.classes) if label and votes else ()
        if label and most and label not in most:
            notes.append(("recount", f"the label is {label}, the votes give {';'.join(most)}"))
        return _Target(votes, label, tuple(ratings) if any(ratings) else (), tuple(notes))

    def _votes(self, fields: Mapping[str, Any]) -> tuple[int, ...] | None:
        field = fields["votes"]
        values = field if isinstance(field, tuple) else split_list(self.to_text(field))
        if values:
            needed = len(self.labels.classes)
            if len(values) != needed:
                raise RowError(f"column `votes` has {len(values)} counts, needs {needed}")
            return tuple([parse_count(str(value), "votes") for value in values])
        if not self.count_columns:
            return None
        counts = dict.fromkeys(self.labels.classes, 0)
        for name, label in self.count_columns.items():
            counts[label] += parse_count(self.to_text(fields[name]) or "0", name)
        return tuple(counts.values())

    def _label(self, text: str) -> tuple[str | None, tuple[int, ...] | None]:
        """The class of a label, or the votes that a label of several classes is read as."""
        names = split_tie(text)
        classes = [self.labels[name] for name in names]
        for name, label in zip(names, classes, strict=True):
            if label is None:
                left_out = self.labels.leaves_out(name)
                raise (RowError if left_out else _NoClassError)(self.labels.why_rejected(name))
        if len(classes) == 1:
            return classes[0], None
        return None, count(classes, self.labels.classes) if classes else None
