"""KEMDy19: scripted and improvised dialogues of 40 voice actors in 20 sessions (ETRI, licensed).

    annotation/SessionNN_{F,M}_res.csv                  two header rows, 43 columns
    wav/SessionNN/SessNN_{script|impro}MM/SessNN_{script|impro}MM_{F|M}KKK.wav and .txt

Both tables of a session list every segment of it: the F table rates the woman while she
speaks or listens, the M table the man. What a recording is labelled with is the rating of
the person heard in it, so the row that counts for `_F012` is the F table's. Rows are
joined by segment id; the tables differ in order and in single ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from multistill.config import CorpusConfig
from multistill.corpora.loaders.kemdy import (
    Clip,
    Folder,
    Row,
    in_turn,
    read_annotation,
    sessions,
    unvisited,
    utterance,
)
from multistill.corpora.paths import entries, not_the_corpus
from multistill.corpora.records import Note, Record, Rejected

_FILE = re.compile(r"Session(\d{2})_([FM])_res\.csv")
_SEGMENT = re.compile(
    r"(?P<dialogue>Sess(?P<session>\d{2})_(?:script|impro)\d{2})_(?P<gender>[FM])\d{3}"
)


def load(config: CorpusConfig, root: Path) -> Iterator[Record]:
    """Session by session, dialogue by dialogue, in the order of the talk."""
    found_tables: dict[str, dict[str, Path]] = {}
    for name in entries(root / "annotation"):
        if found := _FILE.fullmatch(name):
            found_tables.setdefault(found[1], {})[found[2]] = root / "annotation" / name
    if not found_tables:
        raise not_the_corpus("KEMDy19", "annotation/SessionNN_F_res.csv", root)
    visited: list[Path] = []
    for session in sorted(found_tables.keys() | sessions(root)):
        yield from _session(config, root, session, found_tables.get(session, {}), visited)
    yield from unvisited(root, visited)


def _session(
    config: CorpusConfig, root: Path, session: str, tables: dict[str, Path], visited: list[Path]
) -> Iterator[Record]:
    spoken: dict[str, Row] = {}
    heard: dict[str, Row] = {}
    order: dict[str, None] = {}
    for gender in "FM":
        if gender not in tables:
            yield Rejected(
                f"annotation/Session{session}_{gender}_res.csv",
                f"no such file: without it the {gender} speaker of the session has no ratings",
            )
            continue
        for item in read_annotation(tables[gender], root, config.labels):
            if isinstance(item, Rejected):
                yield item
                continue
            found = _SEGMENT.fullmatch(item.segment)
            if found is None or found["session"] != session:
                what = "belongs to another session" if found else "is not a segment id of KEMDy19"
                yield Rejected(item.place, f"{item.segment} {what}")
                continue
            order.setdefault(item.segment)
            yield from _add(item, spoken if found["gender"] == gender else heard, spoken)
    for name in heard.keys() - spoken.keys():
        order.pop(name)
    yield from _one_sided(spoken, heard)

    folder = root / "wav" / f"Session{session}"
    folders: dict[str, Folder] = {}
    for turn, clip in in_turn(_clip(spoken[name], session) for name in order):
        here = folders.setdefault(clip.dialogue, Folder(folder / clip.dialogue, root))
        yield from utterance(clip, turn, f"Session{session}", here)
    for name in entries(folder).values():
        here = folders.get(name) or Folder(folder / name, root)
        visited.append(here.path)
        here.named.update(heard)
        yield from here.unnamed()


def _add(row: Row, rows: dict[str, Row], spoken: dict[str, Row]) -> Iterator[Record]:
    """Keep the first row of an id, and tell of every other."""
    first = rows.setdefault(row.segment, row)
    if first is row:
        return
    differs = "" if first.says_the_same(row) else " and says otherwise"
    text = f"{row.segment}: named twice; the row at {first.place} is kept{differs}"
    yield Rejected(row.place, text) if rows is spoken else Note(row.place, "repeated row", text)


def _one_sided(spoken: dict[str, Row], heard: dict[str, Row]) -> Iterator[Record]:
    for name, row in heard.items():
        if name not in spoken:
            yield Rejected(
                row.place, f"{name}: only the listener's table names it, nobody rated the speaker"
            )
    for name, row in spoken.items():
        if name not in heard:
            yield Note(row.place, "one table only", f"{name}: the listener's table has no such row")


def _clip(row: Row, session: str) -> Clip:
    dialogue, gender = row.segment.rsplit("_", 1)
    return Clip(
        row=row,
        stem=row.segment,
        dialogue=dialogue,
        speaker=f"Session{session}_{gender[0]}",
        gender=gender[0],
    )
