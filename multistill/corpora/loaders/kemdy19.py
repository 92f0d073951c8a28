"""KEMDy19: scripted and improvised dialogues of 40 voice actors in 20 sessions (ETRI, licensed).

    annotation/SessionNN_{F,M}_res.csv                  two header rows, 43 columns
    wav/SessionNN/SessNN_{script|impro}MM/SessNN_{script|impro}MM_{F|M}KKK.wav and .txt

Both tables of a session list all of its segments: the F table rates the woman while she speaks
or listens, the M table the man. The label of a recording is the rating of its speaker, so the
row used for `_F012` is the F table's. Rows are joined by segment id: the tables differ in order
and in some ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.corpora.labels import LabelReader
from multistill.corpora.loaders.kemdy import (
    Clip,
    ClipFolder,
    Row,
    corpus_text,
    duplicate_row,
    number_turns,
    read_annotation,
    sessions,
    unlisted_recordings,
    utterance_records,
)
from multistill.corpora.paths import nfc_names, wrong_folder
from multistill.corpora.records import Note, Record, Rejected
from multistill.corpora.text import CorpusText

_FILE = re.compile(r"Session(\d{2})_([FM])_res\.csv")
_SEGMENT = re.compile(
    r"(?P<dialogue>Sess(?P<session>\d{2})_(?:script|impro)\d{2})_(?P<gender>[FM])\d{3}"
)


def load(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """Yield records by session and dialogue, in the order of the turns."""
    tables: dict[str, dict[str, Path]] = {}
    for name, on_disk in nfc_names(root / "annotation").items():
        if match := _FILE.fullmatch(name):
            tables.setdefault(match[1], {})[match[2]] = root / "annotation" / on_disk
    if not tables:
        raise wrong_folder("KEMDy19", "annotation/SessionNN_F_res.csv", root)
    visited: list[Path] = []
    texts = corpus_text(config, root)
    for session in sorted(tables.keys() | sessions(root)):
        yield from _session(root, session, tables.get(session, {}), visited, texts, labels)
    yield from texts.records()
    yield from unlisted_recordings(root, visited)


def _session(
    root: Path,
    session: str,
    tables: dict[str, Path],
    visited: list[Path],
    texts: CorpusText,
    labels: LabelReader,
) -> Iterator[Record]:
    spoken: dict[str, Row] = {}
    heard: dict[str, Row] = {}
    order: dict[str, None] = {}
    for gender in "FM":
        if gender not in tables:
            yield Rejected(
                f"annotation/Session{session}_{gender}_res.csv",
                f"no such file; the {gender} speaker of the session has no ratings without it",
            )
            continue
        for item in read_annotation(tables[gender], root, labels, texts):
            if isinstance(item, Rejected):
                yield item
                continue
            match = _SEGMENT.fullmatch(item.segment)
            if match is None or match["session"] != session:
                problem = "belongs to another session" if match else "is not a KEMDy19 segment id"
                yield Rejected(item.source, f"{item.segment} {problem}")
                continue
            order.setdefault(item.segment)
            yield from _add(item, spoken if match["gender"] == gender else heard, spoken)
    for name in heard.keys() - spoken.keys():
        order.pop(name)
    yield from _in_one_table_only(spoken, heard)

    folder = root / "wav" / f"Session{session}"
    folders: dict[str, ClipFolder] = {}
    for turn, clip in number_turns(_clip(spoken[name], session) for name in order):
        clips = folders.setdefault(clip.dialogue, ClipFolder(folder / clip.dialogue, root))
        yield from utterance_records(clip, turn, f"Session{session}", clips, texts, labels)
    for name in nfc_names(folder).values():
        clips = folders.get(name) or ClipFolder(folder / name, root)
        visited.append(clips.path)
        clips.used.update(heard)
        yield from clips.unused_recordings()


def _add(row: Row, rows: dict[str, Row], spoken: dict[str, Row]) -> Iterator[Record]:
    """Keep the first row of an id, and report every other."""
    first = rows.setdefault(row.segment, row)
    if first is row:
        return
    text = duplicate_row(first, row)
    yield Rejected(row.source, text) if rows is spoken else Note(row.source, "repeated row", text)


def _in_one_table_only(spoken: dict[str, Row], heard: dict[str, Row]) -> Iterator[Record]:
    for name, row in heard.items():
        if name not in spoken:
            yield Rejected(
                row.source, f"{name}: only in the listener's table; the speaker is not rated"
            )
    for name, row in spoken.items():
        if name not in heard:
            yield Note(row.source, "one table only", f"{name}: the listener's table lacks this id")


def _clip(row: Row, session: str) -> Clip:
    dialogue, gender = row.segment.rsplit("_", 1)
    return Clip(
        row=row,
        stem=row.segment,
        dialogue=dialogue,
        speaker=f"Session{session}_{gender[0]}",
        gender=gender[0],
        style="scripted" if "_script" in dialogue else "improvised",
    )
