"""Common parts of the KEMDy19 and KEMDy20 loaders: annotation tables, votes, clip folders.

Annotation tables have two header rows: a `Segment ID`, a `Total Evaluation` of three columns
(Emotion, Valence, Arousal), and the same three for each evaluator. Columns are found by name,
not by number, so releases with additional leading columns can be read.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.corpora.labels import LabelReader, count, leaders, split_tie
from multistill.corpora.loaders.csv_parquet import csv_rows
from multistill.corpora.loaders.fields import Rating, parse_rating
from multistill.corpora.paths import list_files, lower_ending, nfc_names, require_inside
from multistill.corpora.records import Note, Record, Rejected, Utterance
from multistill.corpora.text import CorpusText, UndecodableError, clean
from multistill.errors import UsageError

_UNLISTED = "no annotation row names this recording"
_SUBCOLUMNS = ("Emotion", "Valence", "Arousal")


@dataclass(frozen=True)
class Row:
    """One row of an annotation table.

    Attributes:
        source: the table's path below the corpus root, and the line.
        published: the labels in Total Evaluation, as classes where they have one.
        ratings: one class per rater, None for no answer or an unknown class.
        unknown: votes for labels without a class.
        off_scale: notes on valence and arousal that are not from 1 to 5.
    """

    source: str
    segment: str
    start: float | None
    published: tuple[str, ...]
    valence: float | None
    arousal: float | None
    ratings: tuple[str | None, ...]
    unknown: tuple[str, ...] = ()
    off_scale: tuple[tuple[str, str], ...] = ()

    def same_content(self, other: Row) -> bool:
        return replace(self, source="") == replace(other, source="")


def duplicate_row(first: Row, row: Row) -> str:
    """The message about a second row for a segment."""
    differs = "" if first.same_content(row) else " and differs from this one"
    return f"{row.segment}: duplicate row; the row at {first.source} is kept{differs}"


@dataclass(frozen=True)
class _Columns:
    segment: int
    start: int | None
    total: Mapping[str, int]
    votes: tuple[int, ...]
    width: int


def read_annotation(
    path: Path, root: Path, labels: LabelReader, texts: CorpusText
) -> Iterator[Row | Rejected]:
    """Yield the rows of one table in its order; a row that cannot be read is `Rejected`.

    Raises:
        UsageError: if the file is not such a table; names file, row and column.
    """
    name = path.relative_to(root).as_posix()
    try:
        text, _ = texts.decode(require_inside(path, root).read_bytes())
    except UndecodableError as error:
        raise UsageError(f"{path}: {error}; save it as UTF-8, or correct `encoding`") from error
    rows = csv_rows(io.StringIO(text, newline=""))
    columns = _columns(path, _header_row(path, rows), _header_row(path, rows))
    width = columns.width
    for line, cells in rows:
        source = f"{name}:{line}"
        if isinstance(cells, str):
            yield Rejected(source, cells)
        elif len(cells) < width:
            yield Rejected(source, f"the row has {len(cells)} columns where the header has {width}")
        elif not cells[columns.segment].strip():
            yield Rejected(source, "no value in column `Segment ID`")
        else:
            yield _row(source, cells, columns, labels)


def _header_row(path: Path, rows: Iterator[tuple[int, list[str] | str]]) -> list[str]:
    line, cells = next(rows, (0, []))
    if isinstance(cells, str):
        raise UsageError(f"{path}: row {line}: {cells}")
    return cells


def _columns(path: Path, first: list[str], second: list[str]) -> _Columns:
    names = [name.strip().casefold() for name in first]
    subnames = [name.strip().casefold() for name in second]

    def group(start: int, name: str) -> dict[str, int]:
        columns = {sub: start + offset for offset, sub in enumerate(subnames[start : start + 3])}
        for sub in _SUBCOLUMNS:
            if sub.casefold() not in columns:
                raise UsageError(f"{path}: row 2: no column `{sub}` below `{name}`")
        return {sub: columns[sub.casefold()] for sub in _SUBCOLUMNS}

    for required in ("Segment ID", "Total Evaluation"):
        if required.casefold() not in names:
            raise UsageError(
                f"{path}: row 1: no column `{required}`; found "
                + (", ".join(name for name in first if name.strip()) or "nothing")
            )
    raters = [index for index, name in enumerate(names) if name.startswith("eval")]
    if not raters:
        raise UsageError(f"{path}: row 1: no evaluator columns (`Eval01F`, ...)")
    total = group(names.index("total evaluation"), "Total Evaluation")
    groups = [group(index, first[index].strip()) for index in raters]
    return _Columns(
        segment=names.index("segment id"),
        start=names.index("wav") if "wav" in names else None,
        total=total,
        votes=tuple(columns["Emotion"] for columns in groups),
        width=1 + max(max(columns.values()) for columns in (total, *groups)),
    )


def _row(source: str, cells: list[str], columns: _Columns, labels: LabelReader) -> Row:
    votes = [cells[index] for index in columns.votes]
    ratings = tuple([labels[vote] for vote in votes])
    unknown: tuple[str, ...] = ()
    if None in ratings:
        pairs = zip(votes, ratings, strict=True)
        unknown = tuple(vote.strip() for vote, label in pairs if label is None and vote.strip())
    valence = _rating(cells[columns.total["Valence"]], "valence")
    arousal = _rating(cells[columns.total["Arousal"]], "arousal")
    return Row(
        source=source,
        segment=cells[columns.segment].strip(),
        start=_number(cells[columns.start]) if columns.start is not None else None,
        published=tuple(
            [labels[name] or name for name in split_tie(cells[columns.total["Emotion"]])]
        ),
        valence=valence.value,
        arousal=arousal.value,
        ratings=ratings,
        unknown=unknown,
        off_scale=(*valence.notes, *arousal.notes),
    )


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _rating(cell: str, dimension: str) -> Rating:
    """A mean rating from 1 to 5; None for anything else, noted if it is another number."""
    return Rating(None) if _number(cell) is None else parse_rating(cell.strip(), dimension)


def corpus_text(config: CorpusConfig, root: Path) -> CorpusText:
    """The text of a KEMDy corpus: its annotation tables and transcripts."""

    def files() -> list[Path]:
        paths = (
            Path(base) / name
            for folder in ("annotation", "wav")
            for base, _, names in os.walk(root / folder)
            for name in names
        )
        return sorted(path for path in paths if path.suffix.lower() in {".csv", ".txt"})

    return CorpusText(config.title, config.encoding, files, korean=True)


def sessions(root: Path) -> set[str]:
    """Two-digit numbers of the sessions that have a folder below wav/."""
    matches = map(re.compile(r"Session(\d{2})").fullmatch, nfc_names(root / "wav"))
    return {match[1] for match in matches if match}


@dataclass(frozen=True)
class Clip:
    """An annotation row with what its id says; `stem` is the file name without extension."""

    row: Row
    stem: str
    dialogue: str
    speaker: str
    gender: str
    style: str | None = None


@dataclass
class ClipFolder:
    """One folder of wav and txt files.

    Attributes:
        files: file name -> whether the file is inside the corpus.
        endings: file name with a lower-case ending -> file name.
        used: stems of the files that a row names.
    """

    path: Path
    root: Path
    files: dict[str, bool] = field(init=False)
    endings: dict[str, str] = field(init=False)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files = list_files(self.path, self.root)
        self.endings = {lower_ending(name): name for name in sorted(self.files)}

    def relative(self, name: str = "") -> str:
        """Path of a file of this folder below the corpus root."""
        return (self.path / name).relative_to(self.root).as_posix()

    def absolute(self, name: str) -> str:
        return f"{self.path}/{name}"

    def unused_recordings(self) -> Iterator[Rejected]:
        """Reject the recordings that no row names."""
        for name in sorted(self.files):
            stem, dot, suffix = name.rpartition(".")
            if dot and suffix.lower() == "wav" and stem not in self.used:
                yield Rejected(self.relative(name), _UNLISTED)


def utterance_records(
    clip: Clip,
    turn: int,
    session: str,
    folder: ClipFolder,
    texts: CorpusText,
    labels: LabelReader,
) -> Iterator[Record]:
    """Yield the utterance of one row with its notes, or the reason for rejecting it."""
    row = clip.row
    folder.used.add(clip.stem)
    wav, txt = f"{clip.stem}.wav", f"{clip.stem}.txt"
    missing = [kind for kind, name in (("wav", wav), ("txt", txt)) if name not in folder.endings]
    if missing:
        files = " and no ".join(missing)
        yield Rejected(row.source, f"{row.segment}: no {files} file in {folder.relative()}")
        return
    wav, txt = folder.endings[wav], folder.endings[txt]
    for name in (wav, txt):
        if not folder.files[name]:
            yield Rejected(row.source, f"{folder.relative(name)} is a link that leaves the corpus")
            return
    try:
        text_raw, encoding = texts.read(folder.absolute(txt))
    except (UndecodableError, OSError) as error:
        yield Rejected(row.source, f"{folder.relative(txt)}: {error}")
        return
    votes = count(row.ratings, labels.classes)
    label = None
    if not any(votes):
        label = row.published[0] if len(row.published) == 1 else None
        if label not in labels.classes:
            published = ";".join(row.published)
            problem = f"`{published}` is not a single class" if published else "no published label"
            problem = f"{row.segment}: no votes, and {problem}"
            if all(getattr(row, name, None) is None for name in labels.dimensions):
                yield Rejected(row.source, problem)
                return
            label = None
            if not labels.without_classes:
                yield Note(row.source, "no class", f"{problem}; only the dimensions are used")
    if any(votes) or label:
        yield from _notes(row, votes, labels.classes)
    for kind, note in row.off_scale:
        yield Note(row.source, kind, f"{row.segment}: {note}")
    yield Utterance(
        utterance_id=row.segment,
        audio_path=folder.absolute(wav),
        session=session,
        dialogue=clip.dialogue,
        turn=turn,
        speaker=clip.speaker,
        gender=clip.gender,
        text_raw=text_raw,
        text=clean(text_raw),
        encoding=encoding,
        votes=votes if any(votes) else None,
        label=label,
        valence=row.valence,
        arousal=row.arousal,
        ratings=row.ratings,
        style=clip.style,
    )


def _notes(row: Row, votes: tuple[int, ...], classes: Sequence[str]) -> Iterator[Note]:
    if row.unknown:
        names = ", ".join(sorted(set(row.unknown)))
        yield Note(row.source, "unknown vote", f"{row.segment}: votes for {names} are not counted")
    recount = leaders(votes, classes)
    if not recount:
        text = f"{row.segment}: the published label {row.published[0]} is used"
        yield Note(row.source, "no votes", text)
    elif set(row.published) != set(recount):
        published = ";".join(row.published) or "nothing"
        text = f"{row.segment}: published {published}, the votes give {';'.join(recount)}"
        yield Note(row.source, "recount", text)


def unlisted_recordings(root: Path, visited: Collection[Path]) -> Iterator[Rejected]:
    """Reject the recordings below wav/ that are outside the visited folders."""
    done = set(visited)
    known = done | {folder.parent for folder in visited}
    for base, folders, files in os.walk(root / "wav"):
        folder = Path(base)
        folders.sort()
        for name in folders:
            if (folder / name).is_symlink() and folder / name not in known:
                source = (folder / name).relative_to(root).as_posix()
                yield Rejected(source, "a link to a folder; links are not followed")
        for name in [] if folder in done else sorted(files):
            if name.lower().endswith(".wav"):
                yield Rejected((folder / name).relative_to(root).as_posix(), _UNLISTED)


def number_turns(clips: Iterable[Clip]) -> Iterator[tuple[int, Clip]]:
    """Yield clips by dialogue, each dialogue in the order of its start times, with turns from 0.

    If any start time of a dialogue is missing, its clips keep the order of the rows.
    """
    dialogues: dict[str, list[Clip]] = {}
    for clip in clips:
        dialogues.setdefault(clip.dialogue, []).append(clip)
    for name in sorted(dialogues):
        members = dialogues[name]
        starts = [clip.row.start for clip in members]
        if None not in starts:
            order = sorted(range(len(members)), key=lambda index: (starts[index], index))
            members = [members[index] for index in order]
        yield from enumerate(members)
