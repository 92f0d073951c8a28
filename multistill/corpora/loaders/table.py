"""Your own corpus from one CSV or Parquet table; see docs/corpora.md for an example.

Columns are ours by name, or mapped by the job file's `columns: {ours: theirs}`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from multistill.config import CLASSES, CorpusConfig
from multistill.corpora.labels import Spellings, count, leaders, split_tie
from multistill.corpora.loaders.cells import (
    RowError,
    gender_of,
    hashable,
    listed,
    plain_text,
    scale,
    stem,
    turn_of,
    whole,
)
from multistill.corpora.loaders.csv_parquet import Table, open_table
from multistill.corpora.paths import Enclosure, audio_folder
from multistill.corpora.records import (
    Note,
    Record,
    Rejected,
    Rows,
    SeenIds,
    Utterance,
    named_twice,
)
from multistill.corpora.split import ALIASES
from multistill.corpora.text import UndecodableError, read_transcript, tidy
from multistill.errors import UsageError

COLUMNS = (
    "utterance_id",
    "audio_path",
    "text",
    "text_path",
    "label",
    "votes",
    *CLASSES,
    "speaker",
    "session",
    "dialogue",
    "turn",
    "gender",
    "valence",
    "arousal",
    "split",
)
"""Our column names. Beside them `rater_...`: one column a rater, with the class they chose."""

_RATER = "rater_"
_REMEMBERED = 65_536  # different answers of raters whose meaning is kept


def load(config: CorpusConfig, root: Path) -> Rows:
    """The table's rows in its order. `root` is the table; paths start from its folder."""
    table = open_table(root, root.name)
    names = _mapping(config, table)
    table.require_text(names.values(), lists=[names[ours] for ours in ("votes",) if ours in names])
    audio_root = audio_folder(config, root)
    if not audio_root.is_dir():
        raise UsageError(
            f"corpus `{config.title}`: looked for the folder {audio_root} (audio_root), "
            "which does not exist"
        )
    reader = _Reader(config, table.header, table.encoding, names, audio_root)
    return Rows(_rows(table, reader), reader.records)


# A row as it stands in the table: its place, the rows of its dialogue before it (counting those
# that are rejected later: they were said all the same), its cells.
_Row = tuple[str, int, Sequence[Any]]


def _rows(table: Table, reader: _Reader) -> Iterator[_Row | Rejected]:
    """What takes the whole table to know: names that stand twice, and the turn by counting."""
    seen = SeenIds()
    turns: Counter[str] = Counter()
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        place, values = item
        number = 0
        if reader.counts_turns and (dialogue := reader.dialogue(values)):
            number = turns[dialogue]
            turns[dialogue] += 1
        name = reader.name(values)
        if name and not seen.is_new(name):
            yield Rejected(place, named_twice(name))
        else:
            yield place, number, values


def _mapping(config: CorpusConfig, table: Table) -> dict[str, str]:
    """Our column name -> the table's, for the columns that are there."""
    for ours, theirs in config.columns.items():
        if ours not in COLUMNS and not ours.startswith(_RATER):
            near = difflib.get_close_matches(ours, COLUMNS, 1)
            raise UsageError(
                f"corpus `{config.title}`: columns.{ours} is no column of ours"
                + (f"; did you mean `{near[0]}`?" if near else f"; there is {', '.join(COLUMNS)}")
            )
        table.require([theirs])
    raters = [name for name in table.header if name.startswith(_RATER)]
    wanted = dict.fromkeys([*COLUMNS, *raters, *config.columns])
    found = {ours: config.columns.get(ours, ours) for ours in wanted}
    found = {ours: theirs for ours, theirs in found.items() if theirs in table.header}
    table.require([] if "audio_path" in found else ["audio_path"])
    if not any(ours in {"label", "votes", *CLASSES} or ours.startswith(_RATER) for ours in found):
        raise UsageError(
            f"{table.path}: row 1: no labels; needs a column `label`, `votes`, counts called "
            f"{', '.join(CLASSES)}, or one `{_RATER}...` a rater; found {', '.join(table.header)}"
        )
    if not {"speaker", "session"} & found.keys():
        raise UsageError(
            f"{table.path}: row 1: no column `speaker` or `session`; without one nobody can tell "
            f"whether training and test share a voice; found {', '.join(table.header)}"
        )
    return found


class _Target(NamedTuple):
    votes: tuple[int, ...] | None
    label: str | None
    ratings: tuple[str | None, ...] | None
    notes: tuple[tuple[str, str], ...]


_SINGLE = (
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
    "valence",
    "arousal",
)


class _Reader:
    """Makes utterances of rows. Written for speed: it must not outweigh reading headers.

    A million rows hold few different answers of raters, so those are parsed once each.
    """

    def __init__(
        self,
        config: CorpusConfig,
        header: Sequence[str],
        encoding: str | None,
        names: Mapping[str, str],
        audio_root: Path,
    ) -> None:
        self.made_of = (config, header, encoding, names, audio_root)
        self.spellings = Spellings(config.labels)
        at = {ours: header.index(theirs) for ours, theirs in names.items()}
        beyond = len(header)  # where `row` puts an empty cell
        self.single = itemgetter(*(at.get(name, beyond) for name in _SINGLE))
        self.raters = sorted(name for name in names if name.startswith(_RATER))
        counted = CLASSES if any(name in names for name in CLASSES) else ()
        self.judged = ("label", "votes", *self.raters, *counted)
        self.judging = itemgetter(*(at.get(name, beyond) for name in self.judged))
        self.counted = bool(counted)
        self.id_at, self.audio_at = at.get("utterance_id"), at["audio_path"]
        self.dialogue_at = at.get("dialogue", -1)
        self.has_turns = "turn" in names
        self.counts_turns = "dialogue" in names and not self.has_turns
        self.plain: Callable[[Any], str] = str.strip if encoding else plain_text
        self.enclosure = Enclosure(audio_root)
        self.encoding = encoding
        self.target = lru_cache(_REMEMBERED)(self._target)
        self.scale = lru_cache(_REMEMBERED)(scale)

    def __reduce__(self) -> tuple[type[_Reader], tuple[Any, ...]]:
        return _Reader, self.made_of  # what it remembers stays here

    def name(self, values: Sequence[Any]) -> str:
        """The row's utterance id; empty where it has neither id nor file."""
        name = "" if self.id_at is None else self.plain(values[self.id_at])
        return name or stem(self.plain(values[self.audio_at]))

    def dialogue(self, values: Sequence[Any]) -> str:
        return self.plain(values[self.dialogue_at])

    def records(self, rows: Sequence[_Row | Rejected]) -> list[Record]:
        found: list[Record] = []
        for item in rows:
            if isinstance(item, Rejected):
                found.append(item)
                continue
            place, number, values = item
            try:
                found.extend(self.row(place, number, values))
            except RowError as error:
                found.append(Rejected(place, str(error)))
        return found

    def row(self, place: str, number: int, values: Sequence[Any]) -> Iterator[Record]:
        cells = (*values, "")
        named, name, said, text_path, dialogue, turn, speaker, session, gender, split, *scales = (
            map(self.plain, self.single(cells))
        )
        if self.has_turns:
            number = turn_of(turn)
        if not named:
            raise RowError("no value in column `audio_path`")
        audio = self._file(named)
        name = name or stem(named)
        text_raw, encoding = self._transcript(text_path) if text_path else (said, self.encoding)
        judged = self.judging(cells)
        if self.encoding is None:
            judged = tuple([hashable(cell) for cell in judged])
        target = self.target(judged)
        if not speaker and not session:
            raise RowError("no value in column `speaker` or `session`")
        valence, arousal = map(self.scale, scales, ("valence", "arousal"))
        for kind, text in (*target.notes, *valence.note, *arousal.note):
            yield Note(place, kind, f"{name}: {text}")
        yield Utterance(
            name,
            audio,
            session or speaker,
            dialogue or name,
            number,
            speaker or session,
            text_raw,
            tidy(text_raw),
            gender_of(gender),
            target.votes,
            target.label,
            valence.value,
            arousal.value,
            encoding,
            target.ratings,
            ALIASES.get(split.casefold(), split) if split else None,
        )

    def _file(self, name: str) -> str:
        try:
            return self.enclosure.file(name)
        except ValueError as error:
            raise RowError(str(error)) from error

    def _transcript(self, name: str) -> tuple[str, str]:
        try:
            return read_transcript(self._file(name))
        except (UndecodableError, OSError) as error:
            raise RowError(f"{name}: {error}") from error

    def _target(self, judged: tuple[Any, ...]) -> _Target:
        cell = dict(zip(self.judged, judged, strict=True))
        notes: list[tuple[str, str]] = []
        ratings: list[str | None] = []
        for rater in self.raters:
            named = self.plain(cell[rater])
            ratings.append(self.spellings[named])
            if named and ratings[-1] is None:
                notes.append(("unknown vote", f"the vote for {named} is not counted"))
        votes = self._votes(cell)
        if votes is None and self.raters:
            votes = count(ratings)
        if votes is not None and not any(votes):
            votes = None
        label, tied = self._label(self.plain(cell["label"]))
        if label is None and votes is None:
            if tied is None:
                raise RowError("no label and no votes")
            return _Target(tied, None, None, tuple(notes))
        if label and votes and label not in leaders(votes):
            most = ";".join(leaders(votes))
            notes.append(("recount", f"the label says {label}, the votes say {most}"))
        return _Target(votes, label, tuple(ratings) if any(ratings) else (), tuple(notes))

    def _votes(self, cell: Mapping[str, Any]) -> tuple[int, ...] | None:
        said = cell["votes"]
        values = said if isinstance(said, tuple) else listed(self.plain(said))
        if values:
            if len(values) != len(CLASSES):
                raise RowError(f"column `votes` has {len(values)} counts, needs {len(CLASSES)}")
            return tuple([whole(str(value), "votes") for value in values])
        if not self.counted:
            return None
        return tuple([whole(self.plain(cell[name]) or "0", name) for name in CLASSES])

    def _label(self, named: str) -> tuple[str | None, tuple[int, ...] | None]:
        """The one class, or the votes that a label of several classes stands for."""
        names = split_tie(named)
        classes = [self.spellings[name] for name in names]
        for name, found in zip(names, classes, strict=True):
            if found is None:
                raise RowError(
                    f"label `{name}` is none of the seven classes; "
                    "map it with `labels` in the job file"
                )
        if len(classes) == 1:
            return classes[0], None
        return None, count(classes) if classes else None
