"""What KEMDy19 and KEMDy20 share: annotation tables with two header rows, votes, clips.

Columns are found by their names, not by their numbers, so versions with other columns
in front still load: a `Segment ID`, a `Total Evaluation` of three (Emotion, Valence,
Arousal), then the same three for each evaluator.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from multistill.config import CLASSES
from multistill.corpora.labels import Spellings, count, leaders, split_tie
from multistill.corpora.loaders.csv_parquet import csv_rows
from multistill.corpora.paths import enclosed, entries, listing
from multistill.corpora.records import Note, Record, Rejected, Utterance
from multistill.corpora.text import UndecodableError, clean, decode, read_transcript
from multistill.errors import UsageError

_UNNAMED = "no row of the annotation names this recording"
_PARTS = ("Emotion", "Valence", "Arousal")


@dataclass(frozen=True)
class Row:
    """One line of an annotation table.

    `published` holds what Total Evaluation names, as classes where they are ones;
    `unknown` the votes that are none.
    """

    place: str
    segment: str
    start: float | None
    published: tuple[str, ...]
    valence: float | None
    arousal: float | None
    ratings: tuple[str | None, ...]
    unknown: tuple[str, ...] = ()

    def says_the_same(self, other: Row) -> bool:
        return replace(self, place="") == replace(other, place="")


@dataclass(frozen=True)
class _Columns:
    segment: int
    start: int | None
    total: Mapping[str, int]
    votes: tuple[int, ...]
    width: int


def read_annotation(
    path: Path, root: Path, label_map: Mapping[str, str]
) -> Iterator[Row | Rejected]:
    """The rows of one table in its order; a row that cannot be read is `Rejected`.

    Raises:
        UsageError: where the file is not such a table; names file, row and column.
    """
    place = path.relative_to(root).as_posix()
    try:
        text, _ = decode(enclosed(path, root).read_bytes(), korean=True)
    except UndecodableError as error:
        raise UsageError(f"{path}: {error}; save it as UTF-8 or CP949") from error
    rows = csv_rows(io.StringIO(text, newline=""))
    columns = _columns(path, _head(path, rows), _head(path, rows))
    width = columns.width
    classes = Spellings(label_map)
    for line, cells in rows:
        where = f"{place}:{line}"
        if isinstance(cells, str):
            yield Rejected(where, cells)
        elif len(cells) < width:
            yield Rejected(where, f"the row has {len(cells)} columns where the header has {width}")
        elif not cells[columns.segment].strip():
            yield Rejected(where, "no value in column `Segment ID`")
        else:
            yield _row(where, cells, columns, classes)


def _head(path: Path, rows: Iterator[tuple[int, list[str] | str]]) -> list[str]:
    line, cells = next(rows, (0, []))
    if isinstance(cells, str):
        raise UsageError(f"{path}: row {line}: {cells}")
    return cells


def _columns(path: Path, first: list[str], second: list[str]) -> _Columns:
    names = [name.strip().casefold() for name in first]
    parts = [name.strip().casefold() for name in second]

    def group(start: int, name: str) -> dict[str, int]:
        found = {part: start + at for at, part in enumerate(parts[start : start + 3])}
        for part in _PARTS:
            if part.casefold() not in found:
                raise UsageError(f"{path}: row 2: no column `{part}` below `{name}`")
        return {part: found[part.casefold()] for part in _PARTS}

    for wanted in ("Segment ID", "Total Evaluation"):
        if wanted.casefold() not in names:
            raise UsageError(
                f"{path}: row 1: no column `{wanted}`; found "
                + (", ".join(name for name in first if name.strip()) or "nothing")
            )
    raters = [at for at, name in enumerate(names) if name.startswith("eval")]
    if not raters:
        raise UsageError(f"{path}: row 1: no evaluator columns (`Eval01F`, ...)")
    total = group(names.index("total evaluation"), "Total Evaluation")
    groups = [group(at, first[at].strip()) for at in raters]
    return _Columns(
        segment=names.index("segment id"),
        start=names.index("wav") if "wav" in names else None,
        total=total,
        votes=tuple(found["Emotion"] for found in groups),
        width=1 + max(max(found.values()) for found in (total, *groups)),
    )


def _row(where: str, cells: list[str], columns: _Columns, classes: Spellings) -> Row:
    named = [cells[at] for at in columns.votes]
    ratings = tuple([classes[name] for name in named])
    unknown: tuple[str, ...] = ()
    if None in ratings:
        pairs = zip(named, ratings, strict=True)
        unknown = tuple(name.strip() for name, found in pairs if found is None and name.strip())
    return Row(
        place=where,
        segment=cells[columns.segment].strip(),
        start=_number(cells[columns.start]) if columns.start is not None else None,
        published=tuple(
            [classes[name] or name for name in split_tie(cells[columns.total["Emotion"]])]
        ),
        valence=_scale(cells[columns.total["Valence"]]),
        arousal=_scale(cells[columns.total["Arousal"]]),
        ratings=ratings,
        unknown=unknown,
    )


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _scale(cell: str) -> float | None:
    """A mean on the scale of 1 to 5; anything else is no rating."""
    value = _number(cell)
    return value if value is not None and 1.0 <= value <= 5.0 else None


def sessions(root: Path) -> set[str]:
    """Numbers of the sessions that have recordings, in two digits."""
    found = map(re.compile(r"Session(\d{2})").fullmatch, entries(root / "wav"))
    return {match[1] for match in found if match}


@dataclass(frozen=True)
class Clip:
    """Where a row's recording stands in the corpus."""

    row: Row
    stem: str
    dialogue: str
    speaker: str
    gender: str


@dataclass
class Folder:
    """One folder of wav and txt files, and which of them some row has named."""

    path: Path
    root: Path
    files: dict[str, bool] = field(init=False)
    named: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files = listing(self.path, self.root)

    def place(self, name: str = "") -> str:
        return (self.path / name).relative_to(self.root).as_posix()

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def unnamed(self) -> Iterator[Rejected]:
        """Recordings that no row names."""
        for name in sorted(self.files):
            stem, dot, ending = name.rpartition(".")
            if dot and ending.lower() == "wav" and stem not in self.named:
                yield Rejected(self.place(name), _UNNAMED)


def utterance(clip: Clip, turn: int, session: str, folder: Folder) -> Iterator[Record]:
    """One row's utterance with its notes, or why there is none."""
    row = clip.row
    folder.named.add(clip.stem)
    wav, txt = f"{clip.stem}.wav", f"{clip.stem}.txt"
    missing = [kind for kind, name in (("wav", wav), ("txt", txt)) if name not in folder.files]
    if missing:
        files = " and no ".join(missing)
        yield Rejected(row.place, f"{row.segment}: no {files} file in {folder.place()}")
        return
    for name in (wav, txt):
        if not folder.files[name]:
            yield Rejected(row.place, f"{folder.place(name)} is a link that leaves the corpus")
            return
    try:
        text_raw, encoding = read_transcript(folder.file(txt), korean=True)
    except (UndecodableError, OSError) as error:
        yield Rejected(row.place, f"{folder.place(txt)}: {error}")
        return
    votes = count(row.ratings)
    label = None
    if not any(votes):
        if len(row.published) != 1 or row.published[0] not in CLASSES:
            named = ";".join(row.published)
            what = f"`{named}` is no single class" if named else "no published label"
            yield Rejected(row.place, f"{row.segment}: no votes, and {what}")
            return
        label = row.published[0]
    yield from _notes(row, votes)
    yield Utterance(
        utterance_id=row.segment,
        audio_path=folder.file(wav),
        session=session,
        dialogue=clip.dialogue,
        turn=turn,
        speaker=clip.speaker,
        gender=clip.gender,
        text_raw=text_raw,
        text=clean(text_raw),
        encoding=encoding,
        votes=None if label else votes,
        label=label,
        valence=row.valence,
        arousal=row.arousal,
        ratings=row.ratings,
    )


def _notes(row: Row, votes: tuple[int, ...]) -> Iterator[Note]:
    if row.unknown:
        names = ", ".join(sorted(set(row.unknown)))
        yield Note(row.place, "unknown vote", f"{row.segment}: votes for {names} are not counted")
    recount = leaders(votes)
    if not recount:
        text = f"{row.segment}: the published label {row.published[0]} is used"
        yield Note(row.place, "no votes", text)
    elif set(row.published) != set(recount):
        published = ";".join(row.published) or "nothing"
        text = f"{row.segment}: published {published}, the votes say {';'.join(recount)}"
        yield Note(row.place, "recount", text)


def unvisited(root: Path, visited: Collection[Path]) -> Iterator[Rejected]:
    """Recordings below wav/ outside the folders in which rows were looked for."""
    done = set(visited)
    known = done | {folder.parent for folder in visited}
    for base, folders, files in os.walk(root / "wav"):
        here = Path(base)
        folders.sort()
        for name in folders:
            if (here / name).is_symlink() and here / name not in known:
                place = (here / name).relative_to(root).as_posix()
                yield Rejected(place, "a link to a folder; links are not followed")
        for name in [] if here in done else sorted(files):
            if name.lower().endswith(".wav"):
                yield Rejected((here / name).relative_to(root).as_posix(), _UNNAMED)


def in_turn(clips: Iterable[Clip]) -> Iterator[tuple[int, Clip]]:
    """Dialogue by dialogue, each in the order of its start times, with turns from 0.

    Where a start is missing in a dialogue, the order of the rows stands for time.
    """
    dialogues: dict[str, list[Clip]] = {}
    for clip in clips:
        dialogues.setdefault(clip.dialogue, []).append(clip)
    for name in sorted(dialogues):
        members = dialogues[name]
        starts = [clip.row.start for clip in members]
        if None not in starts:
            order = sorted(range(len(members)), key=lambda at: (starts[at], at))
            members = [members[at] for at in order]
        yield from enumerate(members)
