"""Clips to predict, as they are named on the command line: files, folders, patterns, tables."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.audio import SUFFIXES
from multistill.corpora.loaders.csv_parquet import Table, open_table
from multistill.corpora.records import Rejected
from multistill.corpora.text import CorpusText
from multistill.errors import UsageError
from multistill.inference.clip import Input

ENDINGS = SUFFIXES | {".m4a", ".mp4"}
"""Of the files that are taken from a folder."""
TABLES = {".csv", ".tsv", ".parquet"}
_COLUMNS = {"audio": ("audio", "audio_path"), "text": ("text",), "id": ("id", "utterance_id")}


@dataclass(frozen=True)
class NamedClip:
    """A clip with a unique id.

    Attributes:
        error: why a row of a table is no clip.
    """

    id: str
    input: Input
    error: str | None = None


def find_clips(audio: Sequence[str], text: str | None) -> list[NamedClip]:
    """The clips of some recordings and a transcript.

    Args:
        audio: files, folders (all recordings below them), patterns such as `data/**/*.wav`, and
            CSV or Parquet tables with a column `audio` or `text` and, if wanted, `id`.
        text: of the only recording, or without any.

    Raises:
        UsageError: there is nothing, or the text could be of several recordings.
    """
    if not audio:
        if text is None:
            raise UsageError("there is nothing to predict; give --audio or --text")
        return [NamedClip("text", Input(None, text))]
    found = [clip for each in audio for clip in _clips_of(each)]
    if text is not None:
        if len(found) != 1 or Path(audio[0]).suffix.lower() in TABLES:
            raise UsageError(
                "--text is of one recording; name one file with --audio, or give a table with the "
                "columns audio and text"
            )
        return [NamedClip(found[0].id, Input(found[0].input.audio, text))]
    seen: set[str] = set()
    for clip in found:
        if clip.id in seen:
            raise UsageError(f"two clips are called `{clip.id}`; give each an id of its own")
        seen.add(clip.id)
    return found


def _clips_of(name: str) -> Iterator[NamedClip]:
    if not name:
        raise UsageError("--audio is empty; name a file, a folder, a pattern or a table")
    path = Path(os.path.expanduser(name))  # noqa: PTH111, Path's raises for an unknown user
    if os.path.isdir(path):  # noqa: PTH112, Path.is_dir raises for what cannot be one
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()
        )
        if not files:
            known = ", ".join(sorted(ENDINGS))
            raise UsageError(f"there is no recording below `{name}` ({known}); name another folder")
        yield from (NamedClip(str(file), Input(file)) for file in files)
    elif path.suffix.lower() in TABLES:
        yield from _rows_of(path)
    elif not os.path.lexists(path) and glob.has_magic(name):
        files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        files = [file for file in files if file.is_file()]
        if not files:
            raise UsageError(f"no file is called `{name}`; check the pattern")
        yield from (NamedClip(str(file), Input(file)) for file in files)
    else:
        yield NamedClip(name, Input(path))


def _rows_of(path: Path) -> Iterator[NamedClip]:
    try:
        table = open_table(path, path.name, CorpusText(path.name, None, lambda: [path]))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name another table") from error
    columns = {key: _column(table, names) for key, names in _COLUMNS.items()}
    if columns["audio"] is None and columns["text"] is None:
        raise UsageError(
            f"{path} has neither a column `audio` nor `text`, only {', '.join(table.header)}; "
            "rename its columns"
        )
    table.require_text([table.header[column] for column in columns.values() if column is not None])
    for row in table.rows():
        if isinstance(row, Rejected):
            yield NamedClip(row.source, Input(), row.reason)
            continue
        source, values = row
        cells = {k: None if c is None else _cell(values[c]) for k, c in columns.items()}
        audio = None if cells["audio"] is None else path.parent / cells["audio"]
        yield NamedClip(cells["id"] or cells["audio"] or source, Input(audio, cells["text"]))


def _column(table: Table, names: Sequence[str]) -> int | None:
    return next((table.header.index(name) for name in names if name in table.header), None)


def _cell(value: Any) -> str | None:
    text = "" if value is None else str(value)
    return text if text.strip() else None
