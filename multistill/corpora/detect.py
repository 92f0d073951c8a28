"""What corpus a path holds: asked of each loader, and guessed from a table's columns."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from multistill.config import CLASSES, DIMENSIONS, CorpusConfig
from multistill.config.tasks import SCALE
from multistill.corpora.labels import split_tie
from multistill.corpora.loaders import LOADERS, load
from multistill.corpora.loaders.csv_parquet import Table, open_table
from multistill.corpora.loaders.fields import to_text
from multistill.corpora.paths import describe_folder
from multistill.corpora.records import Rejected
from multistill.corpora.text import CorpusText
from multistill.errors import MultistillError, UsageError
from multistill.wording import counted

TABLES = (".csv", ".tsv", ".parquet")
FEWEST_GROUPS = 3
"""Speakers or sessions, one each to train on, to choose the epoch on and to test."""
_SAMPLE = 5000  # rows of a table that are looked at
_NAMES = {
    "audio_path": "path file filename audio wav wavpath audiofile filepath 파일명",
    "text": "transcript transcription sentence utterance script 발화문",
    "label": "emotion emotionlabel class category target 감정",
    "speaker": "speakerid speakername spk spkid actor subject user 화자",
    "session": "sessionid recordingsession",
    "dialogue": "dialog dialogueid dialogid conversation conversationid",
    "utterance_id": "id uttid uid segmentid",
    "turn": "turnid turnindex",
    "gender": "sex 성별",
    "age": "나이 speakerage",
    "style": "speechstyle speakingstyle",
    "split": "partition subset",
}
"""What tables call our columns, without spaces and punctuation."""


@dataclass(frozen=True)
class FoundCorpus:
    """A corpus as `CorpusConfig` names it.

    Attributes:
        settings: keys of a corpus in the job file.
        split: what to split it by.
        labels: of the first rows with their number, the commonest first.
        missing: what the table lacks, in sentences.
        has_text: whether it has transcripts.
        has_classes: whether it has labels or votes, or may have.
        dimensions: of which a table has a column.
        groups: number of what it is split by; None if that was not counted.
    """

    settings: dict[str, Any]
    split: str = "session"
    labels: tuple[tuple[str, int], ...] = ()
    missing: tuple[str, ...] = ()
    has_text: bool = True
    has_classes: bool = True
    dimensions: tuple[str, ...] = ()
    groups: int | None = None


def find_corpora(path: Path) -> list[FoundCorpus]:
    """The corpora at a path: a table file, a corpus's folder, or a folder of such folders.

    Raises:
        UsageError: there is none, or it cannot be told which of several tables is meant.
    """
    if path.is_file():
        return [_describe_table(path)]
    if not path.is_dir():
        raise UsageError(f"looked for a corpus at {path}, which does not exist")
    found = _in_folder(path)
    if found is not None:
        return [found]
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    inside = [(folder, found) for folder in folders if (found := _in_folder(folder)) is not None]
    if len(inside) > 1:
        # The title of a corpus is its kind unless it has a name.
        return [
            replace(found, settings={**found.settings, "name": folder.name})
            for folder, found in inside
        ]
    if inside:
        return [inside[0][1]]
    raise UsageError(
        f"{path} is no corpus that multistill knows ({', '.join(LOADERS)}): "
        f"{describe_folder(path)}; write one row per recording into a CSV file with the columns "
        "audio_path, text, label and speaker, and give its path"
    )


def _in_folder(folder: Path) -> FoundCorpus | None:
    for kind in LOADERS:
        if kind in {"demo", "table"}:
            continue
        config = CorpusConfig(kind=kind, path=str(folder))
        try:
            next(load(config))
        except (MultistillError, StopIteration):
            continue
        return FoundCorpus({"kind": kind, "path": str(folder)})
    tables = sorted(child for child in folder.iterdir() if child.suffix.lower() in TABLES)
    described = list(_readable(tables))
    complete = [table for table in described if not table.missing]
    if len(complete or described) > 1:
        raise UsageError(
            f"{folder} holds {len(described)} tables ({', '.join(t.name for t in tables)}); "
            "give the path of one"
        )
    return next(iter(complete or described), None)


def _readable(tables: Sequence[Path]) -> Iterator[FoundCorpus]:
    for table in tables:
        try:
            yield _describe_table(table)
        except MultistillError:
            continue


def _describe_table(path: Path) -> FoundCorpus:
    table = open_table(path, path.name, CorpusText(path.stem, None, lambda: [path]))
    names = _known_columns(table)
    rows = [cells for _, cells in islice(_rows(table), _SAMPLE)]

    def values(column: str) -> list[str]:
        index = table.header.index(names[column]) if column in names else -1
        return [to_text(row[index]) for row in rows] if index >= 0 else []

    settings: dict[str, Any] = {"kind": "table", "path": str(path)}
    missing = []
    if "audio_path" in names:
        folder = _audio_folder(path.parent, values("audio_path"))
        if folder is None:
            missing.append(
                "the recordings were not found: `audio_root` is the folder that the paths in "
                f"column `{names['audio_path']}` start from"
            )
        elif folder != path.parent:
            settings["audio_root"] = str(folder)
    dimensions = tuple(name for name in DIMENSIONS if name in names)
    has_classes = _has("label", names, table)
    for column, needed in (
        ("audio_path", "with the paths of the recordings"),
        ("label", "with the labels"),
        ("speaker", "with the speakers"),
    ):
        if column == "label" and dimensions:
            continue
        if not _has(column, names, table):
            missing.append(
                f"no column {needed} was recognised: name it as `{column}` in `columns`; "
                f"the table has {', '.join(table.header)}"
            )
    renamed = {ours: theirs for ours, theirs in names.items() if ours != theirs}
    if renamed:
        settings["columns"] = renamed
    for name in dimensions:
        if (problem := _out_of_scale(name, values(name))) is not None:
            missing.append(problem)
            break
    labels = Counter(label for text in values("label") for label in split_tie(text))
    split = "session" if "session" in names else "speaker"
    groups = {name for name in values(split) if name}
    total = len(groups) if groups and len(rows) < _SAMPLE else None
    if total is not None and total < FEWEST_GROUPS:
        missing.append(
            f"the table has {counted(total, split)}, and models need "
            f"{FEWEST_GROUPS}: to train on, to choose the epoch on, and to be tested on; add data"
        )
    return FoundCorpus(
        settings,
        split=split,
        labels=tuple(labels.most_common()),
        missing=tuple(missing),
        has_text=any(values("text")) or "text_path" in names,
        has_classes=has_classes or not dimensions,
        dimensions=dimensions,
        groups=total,
    )


def _out_of_scale(dimension: str, fields: Sequence[str]) -> str | None:
    """A sentence if values are outside the scale that tables have by default."""
    found = []
    for text in fields:
        try:
            found.append(float(text))
        except ValueError:
            continue
    if not found or (SCALE[0] <= min(found) and max(found) <= SCALE[1]):
        return None
    return (
        f"the values of `{dimension}` go from {min(found):g} to {max(found):g}: set `scale` to the "
        "lowest and the highest value that raters could give, and they are mapped to "
        f"{SCALE[0]:g} to {SCALE[1]:g}"
    )


def _known_columns(table: Table) -> dict[str, str]:
    """Our name of a column -> the table's, where one of them can be told."""
    plain = {_plain(name): name for name in reversed(table.header)}
    known = {}
    for column, others in _NAMES.items():
        name = next((plain[key] for key in [_plain(column), *others.split()] if key in plain), None)
        if name is not None:
            known[column] = name
    for column in ("text_path", *DIMENSIONS):
        if column in table.header:
            known[column] = column
    return known


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _has(column: str, names: dict[str, str], table: Table) -> bool:
    if column == "label":
        others = {"votes", *CLASSES} & set(table.header)
        return column in names or bool(others) or any(n.startswith("rater_") for n in table.header)
    return column in names or (column == "speaker" and "session" in names)


def _rows(table: Table) -> Iterator[tuple[str, Sequence[Any]]]:
    for item in table.rows():
        if not isinstance(item, Rejected):
            yield item


def _audio_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder that the paths start from: the table's, one inside it, or the one above.

    Of absolute paths, the table's or the deepest that holds all of them.
    """
    absolute = [name for name in names if name.startswith("/")]
    if absolute:
        if not any(Path(name).is_file() for name in absolute[:20]):
            return None
        above = Path(os.path.commonpath([os.path.dirname(name) for name in absolute]))  # noqa: PTH120
        return folder if above.is_relative_to(folder) else above
    sample = [name for name in names if name][:20]
    inside = sorted(child for child in folder.iterdir() if child.is_dir())
    for candidate in (folder, *inside, folder.parent):
        if any((candidate / name).is_file() for name in sample):
            return candidate
    return None
