"""KEMDy20: spontaneous dialogues of 80 adults in 40 sessions, ten external raters (ETRI, licensed).

    annotation/SessNN_eval.csv                          two header rows, 37 columns
    wav/SessionNN/SessNN_scriptMM_UserXXX{F|M}_KKK.wav  16 kHz mono, and .txt in CP949

Known defects that this module handles: `disqust` in Total Evaluation, rows of session 17
whose ids are numbered 42, ties written in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
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

_FILE = re.compile(r"Sess(\d{2})_eval\.csv")
_SEGMENT = re.compile(
    r"(?P<dialogue>Sess(?P<session>\d{2})_script\d{2})_(?P<user>User\d{3})(?P<gender>[FM])_\d{3}"
)

# The corpus has no session 42: rows with this number belong to session 17.
_RENAMED = {"17": "42"}


def load(config: CorpusConfig, root: Path, labels: LabelReader) -> Iterator[Record]:
    """Yield records by session and dialogue, in the order of the turns."""
    tables = {
        match[1]: root / "annotation" / on_disk
        for name, on_disk in nfc_names(root / "annotation").items()
        if (match := _FILE.fullmatch(name))
    }
    if not tables:
        raise wrong_folder("KEMDy20", "annotation/SessNN_eval.csv", root)
    texts = corpus_text(config, root)
    for session in sorted(tables.keys() | sessions(root)):
        if session in tables:
            yield from _session(root, session, tables[session], texts, labels)
        else:
            yield Rejected(
                f"annotation/Sess{session}_eval.csv",
                "no such file; the recordings of the session have no ratings without it",
            )
    yield from texts.records()
    yield from unlisted_recordings(root, [root / "wav" / f"Session{session}" for session in tables])


def _session(
    root: Path, session: str, path: Path, texts: CorpusText, labels: LabelReader
) -> Iterator[Record]:
    folder = ClipFolder(root / "wav" / f"Session{session}", root)
    clips: dict[str, Clip] = {}
    renamed = 0
    for item in read_annotation(path, root, labels, texts):
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
                item.source,
                duplicate_row(first.row, clip.row),
            )
    if renamed:
        yield Note(
            path.relative_to(root).as_posix(),
            "renamed ids",
            f"{renamed} rows are numbered Sess{_RENAMED[session]} and read as Sess{session}",
        )
    for turn, clip in number_turns(clips.values()):
        yield from utterance_records(clip, turn, f"Session{session}", folder, texts, labels)
    yield from folder.unused_recordings()


def _clip(row: Row, session: str, folder: ClipFolder) -> Clip | Rejected:
    match = _SEGMENT.fullmatch(row.segment)
    if match is None:
        return Rejected(row.source, f"{row.segment!r} is not a KEMDy20 segment id")
    stem = row.segment
    if match["session"] != session:
        if _RENAMED.get(session) != match["session"]:
            return Rejected(row.source, f"{row.segment} belongs to another session")
        row = replace(row, segment=f"Sess{session}{row.segment[len('SessNN') :]}")
        # Depending on the release, the clips have the right number or the wrong one.
        if f"{row.segment}.wav" in folder.endings or f"{stem}.wav" not in folder.endings:
            stem = row.segment
    return Clip(
        row=row,
        stem=stem,
        dialogue=f"Sess{session}{match['dialogue'][len('SessNN') :]}",
        speaker=match["user"],
        gender=match["gender"],
    )
