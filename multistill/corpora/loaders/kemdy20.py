"""KEMDy20: free talk of 80 adults in 40 sessions, ten outside raters (ETRI, licensed).

    annotation/SessNN_eval.csv                          two header rows, 37 columns
    wav/SessionNN/SessNN_scriptMM_UserXXX{F|M}_KKK.wav  16 kHz mono, beside it .txt in CP949

Known glitches that this module handles: `disqust` in Total Evaluation, rows of session
17 whose ids say session 42, ties written in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
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

_FILE = re.compile(r"Sess(\d{2})_eval\.csv")
_SEGMENT = re.compile(
    r"(?P<dialogue>Sess(?P<session>\d{2})_script\d{2})_(?P<user>User\d{3})(?P<gender>[FM])_\d{3}"
)

# The corpus has no session 42: rows so called are session 17's.
_RENAMED = {"17": "42"}


def load(config: CorpusConfig, root: Path) -> Iterator[Record]:
    """Session by session, dialogue by dialogue, in the order of the talk."""
    tables = {
        found[1]: root / "annotation" / name
        for name in entries(root / "annotation")
        if (found := _FILE.fullmatch(name))
    }
    if not tables:
        raise not_the_corpus("KEMDy20", "annotation/SessNN_eval.csv", root)
    for session in sorted(tables.keys() | sessions(root)):
        if session in tables:
            yield from _session(config, root, session, tables[session])
        else:
            yield Rejected(
                f"annotation/Sess{session}_eval.csv",
                "no such file: without it the recordings of the session have no ratings",
            )
    yield from unvisited(root, [root / "wav" / f"Session{session}" for session in tables])


def _session(config: CorpusConfig, root: Path, session: str, path: Path) -> Iterator[Record]:
    folder = Folder(root / "wav" / f"Session{session}", root)
    clips: dict[str, Clip] = {}
    renamed = 0
    for item in read_annotation(path, root, config.labels):
        if isinstance(item, Rejected):
            yield item
            continue
        clip = _clip(item, session, folder)
        if isinstance(clip, Rejected):
            yield clip
            continue
        renamed += clip.row is not item
        first = clips.setdefault(clip.row.segment, clip)
        if first is not clip:
            yield Rejected(
                item.place,
                f"{clip.row.segment}: named twice; the row at {first.row.place} is kept"
                + ("" if first.row.says_the_same(clip.row) else " and says otherwise"),
            )
    if renamed:
        yield Note(
            path.relative_to(root).as_posix(),
            "renamed ids",
            f"{renamed} rows say Sess{_RENAMED[session]} and are read as Sess{session}",
        )
    for turn, clip in in_turn(clips.values()):
        yield from utterance(clip, turn, f"Session{session}", folder)
    yield from folder.unnamed()


def _clip(row: Row, session: str, folder: Folder) -> Clip | Rejected:
    found = _SEGMENT.fullmatch(row.segment)
    if found is None:
        return Rejected(row.place, f"{row.segment!r} is not a segment id of KEMDy20")
    stem = row.segment
    if found["session"] != session:
        if _RENAMED.get(session) != found["session"]:
            return Rejected(row.place, f"{row.segment} belongs to another session")
        row = replace(row, segment=f"Sess{session}{row.segment[len('SessNN') :]}")
        # Releases may differ in whether the clips carry the right number.
        if f"{row.segment}.wav" in folder.files or f"{stem}.wav" not in folder.files:
            stem = row.segment
    return Clip(
        row=row,
        stem=stem,
        dialogue=f"Sess{session}{found['dialogue'][len('SessNN') :]}",
        speaker=found["user"],
        gender=found["gender"],
    )
