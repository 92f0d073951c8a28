"""Your own corpus from one CSV or Parquet table; see docs/corpora.md for an example.

Columns are ours by name, or mapped by the job file's `columns: {ours: theirs}`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from multistill.config import CLASSES, CorpusConfig
from multistill.corpora.labels import Spellings, count, leaders, split_tie
from multistill.corpora.paths import Enclosure
from multistill.corpora.records import Note, Record, Rejected, Utterance
from multistill.corpora.tabular import Table, open_table
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
_SPLITS = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
_GENDERS = {
    "f": "F",
    "female": "F",
    "여": "F",
    "여성": "F",
    "m": "M",
    "male": "M",
    "남": "M",
    "남성": "M",
}


class _RowError(ValueError):
    """Why one row does not become an utterance."""


def gender_of(text: str) -> str | None:
    """F or M where the word is known, else the word itself."""
    return _GENDERS.get(text.casefold(), text) if text else None


def load(config: CorpusConfig, root: Path) -> Iterator[Record]:
    """The table's rows in its order. `root` is the table; paths start from its folder."""
    table = open_table(root, root.name)
    names = _mapping(config, table)
    audio_root = Path(config.audio_root).expanduser() if config.audio_root else root.parent
    if not audio_root.is_dir():
        raise UsageError(
            f"corpus `{config.title}`: looked for the folder {audio_root} (audio_root), "
            "which does not exist"
        )
    reader = _Reader(config, table, names, Enclosure(audio_root))
    for item in table.rows():
        if isinstance(item, Rejected):
            yield item
            continue
        place, values = item
        try:
            yield from reader.row(place, values)
        except _RowError as error:
            yield Rejected(place, str(error))


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


@dataclass
class _Target:
    votes: tuple[int, ...] | None
    label: str | None
    ratings: tuple[str | None, ...]
    notes: list[tuple[str, str]]


class _Reader:
    """Makes utterances of rows. Written for speed: it must not outweigh reading headers."""

    def __init__(
        self, config: CorpusConfig, table: Table, names: Mapping[str, str], enclosure: Enclosure
    ) -> None:
        self.spellings = Spellings(config.labels)
        self.names = tuple(names)
        self.pick = itemgetter(*(table.header.index(theirs) for theirs in names.values()))
        self.plain: Callable[[Any], Any] = str.strip if table.encoding else _plain
        self.enclosure = enclosure
        self.encoding = table.encoding
        self.raters = sorted(name for name in names if name.startswith(_RATER))
        self.counted = any(name in names for name in CLASSES)
        self.turns: dict[str, int] = {}
        # Hashes, so that a million names cost less than the manifest's own column of them.
        self.seen: set[int] = set()

    def row(self, place: str, values: Sequence[Any]) -> Iterator[Record]:
        cell = dict(zip(self.names, map(self.plain, self.pick(values)), strict=True))
        # A row that is rejected below still was said: it takes its place in the dialogue.
        dialogue = _text(cell, "dialogue")
        turn = self._turn(cell, dialogue)
        named = _text(cell, "audio_path")
        if not named:
            raise _RowError("no value in column `audio_path`")
        audio = self._file(named)
        name = _text(cell, "utterance_id") or named.replace("\\", "/").rsplit(".", 1)[0]
        key = hash(name)
        if key in self.seen:
            raise _RowError(f"{name}: named twice; the first row is kept")
        text_raw, encoding = self._transcript(cell)
        target = self._target(cell)
        speaker, session = _text(cell, "speaker"), _text(cell, "session")
        if not speaker and not session:
            raise _RowError("no value in column `speaker` or `session`")
        valence = self._scale(cell, "valence", target.notes)
        arousal = self._scale(cell, "arousal", target.notes)
        split = _text(cell, "split")
        if split and split.casefold() not in _SPLITS:
            raise _RowError(f"column `split` says `{split}`; use train, valid or test")
        self.seen.add(key)
        for kind, text in target.notes:
            yield Note(place, kind, f"{name}: {text}")
        yield Utterance(
            utterance_id=name,
            audio_path=audio,
            session=session or speaker,
            dialogue=dialogue or name,
            turn=turn,
            speaker=speaker or session,
            gender=gender_of(_text(cell, "gender")),
            text_raw=text_raw,
            text=tidy(text_raw),
            encoding=encoding,
            votes=target.votes,
            label=target.label,
            ratings=target.ratings,
            valence=valence,
            arousal=arousal,
            split=_SPLITS[split.casefold()] if split else None,
        )

    def _file(self, name: str) -> Path:
        try:
            return self.enclosure.file(name)
        except ValueError as error:
            raise _RowError(str(error)) from error

    def _transcript(self, cell: Mapping[str, Any]) -> tuple[str, str | None]:
        name = _text(cell, "text_path")
        if not name:
            return _text(cell, "text"), self.encoding
        try:
            return read_transcript(self._file(name))
        except (UndecodableError, OSError) as error:
            raise _RowError(f"{name}: {error}") from error

    def _target(self, cell: Mapping[str, Any]) -> _Target:
        notes: list[tuple[str, str]] = []
        ratings: list[str | None] = []
        for rater in self.raters:
            named = _text(cell, rater)
            ratings.append(self.spellings[named])
            if named and ratings[-1] is None:
                notes.append(("unknown vote", f"the vote for {named} is not counted"))
        votes = self._votes(cell)
        if votes is None and self.raters:
            votes = count(ratings)
        if votes is not None and not any(votes):
            votes = None
        label, tied = self._label(cell)
        if label is None and votes is None:
            votes = tied
        if label is None and votes is None:
            raise _RowError("no label and no votes")
        if label and votes and label not in leaders(votes):
            most = ";".join(leaders(votes))
            notes.append(("recount", f"the label says {label}, the votes say {most}"))
        return _Target(votes, label, tuple(ratings), notes)

    def _votes(self, cell: Mapping[str, Any]) -> tuple[int, ...] | None:
        listed = cell.get("votes")
        if listed is not None and listed != "":
            values = (
                re.split(r"[\s,;|]+", listed.strip("[]() ")) if isinstance(listed, str) else listed
            )
            if len(values) != len(CLASSES):
                raise _RowError(f"column `votes` has {len(values)} counts, needs {len(CLASSES)}")
            return tuple([_whole(value, "votes") for value in values])
        if not self.counted:
            return None
        return tuple([_whole(cell.get(name) or 0, name) for name in CLASSES])

    def _label(self, cell: Mapping[str, Any]) -> tuple[str | None, tuple[int, ...] | None]:
        """The one class, or the votes that a label of several classes stands for."""
        named = split_tie(_text(cell, "label"))
        classes = [self.spellings[name] for name in named]
        for name, found in zip(named, classes, strict=True):
            if found is None:
                raise _RowError(
                    f"label `{name}` is none of the seven classes; "
                    "map it with `labels` in the job file"
                )
        if len(classes) == 1:
            return classes[0], None
        return None, count(classes) if classes else None

    def _scale(
        self, cell: Mapping[str, Any], name: str, notes: list[tuple[str, str]]
    ) -> float | None:
        value = _number(cell.get(name), name)
        if value is not None and not 1.0 <= value <= 5.0:
            notes.append(("off the scale", f"{name} {value:g} is not from 1 to 5 and is left out"))
            return None
        return value

    def _turn(self, cell: Mapping[str, Any], dialogue: str) -> int:
        if "turn" in self.names:
            if cell["turn"] == "":
                raise _RowError("no value in column `turn`")
            return _whole(cell["turn"], "turn")
        if not dialogue:
            return 0
        turn = self.turns.get(dialogue, 0)
        self.turns[dialogue] = turn + 1
        return turn


def _plain(value: Any) -> Any:
    """A Parquet value as a CSV would tell it: empty text for what is not there."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:  # the second is true of NaN only
        return ""
    if isinstance(value, float) and value.is_integer():
        # A column of numbers with a gap becomes float on the way through pandas.
        return int(value)
    return value


def _text(cell: Mapping[str, Any], name: str) -> str:
    return str(cell.get(name, ""))


def _number(value: Any, column: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise _RowError(f"column `{column}` says `{value}`, which is no number") from error
    if not math.isfinite(found):
        raise _RowError(f"column `{column}` says `{value}`, which is no number")
    return found


def _whole(value: Any, column: str) -> int:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    found = _number(value, column)
    if found is None or found < 0 or not found.is_integer():
        raise _RowError(f"column `{column}` says `{value}`, which is no whole number of 0 or more")
    return int(found)
