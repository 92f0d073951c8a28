"""Recordings of a manifest stay inside the corpora of the job."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multistill.config import CorpusConfig
from multistill.corpora.roots import corpus_roots, stays_inside


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "wav").mkdir(parents=True)
    (folder / "wav" / "a.wav").write_bytes(b"")
    (tmp_path / "secret").write_text("")
    (folder / "wav" / "link.wav").symlink_to(tmp_path / "secret")
    (tmp_path / "mount").symlink_to(folder)
    return folder


def _inside(corpus: Path, *paths: Path | str | None) -> bool:
    manifest = corpus.parent / "manifest.parquet"
    column = pa.array([None if path is None else str(path) for path in paths], pa.string())
    pq.write_table(pa.table({"audio_path": column}), manifest)
    roots = corpus_roots([CorpusConfig(kind="kemdy20", path=str(corpus))], corpus / "none")
    return stays_inside(manifest, roots)


def test_recordings_of_the_corpus_are_inside_by_whatever_path(corpus):
    assert _inside(corpus, corpus / "wav" / "a.wav", corpus.parent / "mount" / "wav" / "a.wav")


@pytest.mark.parametrize(
    "planted", ["/etc/passwd", "../secret", "{}/../secret", "{}/wav/link.wav", "{}2/a.wav", None]
)
def test_another_path_is_outside(corpus, planted):
    path = planted.format(corpus) if planted else None
    assert not _inside(corpus, corpus / "wav" / "a.wav", path)


def test_a_table_reads_from_its_own_folder_or_from_its_audio_root(tmp_path):
    table = CorpusConfig(kind="table", path=str(tmp_path / "t" / "table.csv"))
    elsewhere = table.model_copy(update={"audio_root": str(tmp_path / "audio")})
    roots = corpus_roots([table, elsewhere, CorpusConfig(kind="demo")], tmp_path / "unpacked")
    assert roots == [tmp_path / "t", tmp_path / "audio", tmp_path / "unpacked"]
