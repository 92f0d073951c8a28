"""Loading a corpus in tests, and writing small tables with recordings."""

from __future__ import annotations

from pathlib import Path

from helpers.generators.parts import write_wav
from multistill.config import CorpusConfig, CorpusKind
from multistill.corpora import loaders
from multistill.corpora.records import Record, Rejected, TextEncoding, Utterance


def load(kind: CorpusKind, root: Path, **options: object) -> list[Record]:
    """Records of clips and rows of the corpus; `options` are further fields of its config."""
    records = loaders.load(CorpusConfig(kind=kind, path=str(root), **options))
    return [record for record in records if not isinstance(record, TextEncoding)]


def utterances(records: list[Record]) -> list[Utterance]:
    return [record for record in records if isinstance(record, Utterance)]


def utterance_ids(records: list[Record]) -> list[str]:
    return [record.utterance_id for record in utterances(records)]


def reasons(records: list[Record]) -> dict[str, str]:
    """Source -> reason of the rejected records."""
    return {record.source: record.reason for record in records if isinstance(record, Rejected)}


def write_table(
    folder: Path, rows: list[str], header: str = "audio_path,text,label,speaker"
) -> Path:
    """Write `t.csv` with these rows and one recording per row: `0.wav`, `1.wav`, ..."""
    folder.mkdir(exist_ok=True)
    for number in range(len(rows)):
        write_wav(folder / f"{number}.wav", number)
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / "t.csv"
