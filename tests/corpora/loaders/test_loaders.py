"""The loader registry, and what holds for every loader: paths, limit, links, memory."""

from __future__ import annotations

import itertools
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
from helpers.corpora import load, utterances
from helpers.generators import aihub, kemdy19, kemdy20
from helpers.generators.parts import write_wav

from multistill.config import CorpusConfig, CorpusKind
from multistill.corpora import loaders
from multistill.corpora.records import Utterance
from multistill.errors import MultistillError, UsageError


@pytest.mark.parametrize("kind", loaders.LOADERS)
def test_a_missing_path_is_reported_with_what_exists_there(
    tmp_path: Path, kind: CorpusKind
) -> None:
    if kind == "demo":
        with pytest.raises(UsageError, match="demo corpus is packaged"):
            loaders.corpus_root(CorpusConfig(kind="demo"))
        return
    (tmp_path / "KEMDy20_v1_2").mkdir()
    config = CorpusConfig(kind=kind, path=str(tmp_path / "KEMDy20"), name="mine")
    with pytest.raises(UsageError, match=r"corpus `mine`.*not exist.*found KEMDy20_v1_2/"):
        loaders.corpus_root(config)


def test_a_file_in_place_of_a_folder_is_refused_and_vice_versa(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"looked for the folder .*it is a file"):
        loaders.corpus_root(CorpusConfig(kind="kemdy20", path=str(tmp_path / "file")))
    with pytest.raises(UsageError, match=r"looked for the table file .*found file"):
        loaders.corpus_root(CorpusConfig(kind="table", path=str(tmp_path)))


def test_audio_paths_of_a_linked_corpus_start_with_the_link(tmp_path: Path) -> None:
    root = kemdy20.make(tmp_path / "real", (1,), segments_per_session=6, glitches=False).root
    (tmp_path / "link").symlink_to(root)
    kept = utterances(load("kemdy20", tmp_path / "link"))
    assert len(kept) == 6
    assert all(Path(item.audio_path).is_relative_to(tmp_path / "link") for item in kept)


def test_limit_ends_the_corpus_after_that_many_utterances(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K")
    assert utterances(load("kemdy20", truth.root, limit=7)) == truth.utterances[:7]


def test_loading_writes_nothing(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load("kemdy20", truth.root)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Twenty times the rows need no more memory, except for the 8-byte hashes of their ids."""
    write_wav(tmp_path / "a.wav", 1)

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        with path.open("w") as stream:
            stream.write("utterance_id,audio_path,label,speaker,text\n")
            stream.writelines(f"u{n},a.wav,sad,kim,{'말' * 50}\n" for n in range(rows))
        records = loaders.load(CorpusConfig(kind="table", path=str(path)))
        tracemalloc.start()
        kept = sum(isinstance(item, Utterance) for item in records)
        _, traced_peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept == rows
        return traced_peak

    small, large = peak(200), peak(4000)
    assert large - small < 3800 * 120


def test_loaders_are_lazy(tmp_path: Path) -> None:
    """The first records are yielded before a later session's table is opened."""
    truth = kemdy20.make(tmp_path / "K", sessions=(1, 2), segments_per_session=6, glitches=False)
    (truth.root / "annotation/Sess02_eval.csv").write_text("nonsense")
    records = loaders.load(CorpusConfig(kind="kemdy20", path=str(truth.root)))
    assert len(list(itertools.islice(records, 6))) == 6
    with pytest.raises(UsageError):
        next(records)


def test_an_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/x")

    root = kemdy20.make(tmp_path / "K", (1,), segments_per_session=6, glitches=False).root
    monkeypatch.setattr("multistill.corpora.loaders.kemdy.list_files", unreadable)
    with pytest.raises(MultistillError, match="`kemdy20`: /data/x cannot be read: Permission"):
        load("kemdy20", root)


def test_every_corpus_kind_has_a_loader() -> None:
    kinds = CorpusKind.__args__
    assert set(loaders.LOADERS) == set(kinds)
    for kind in kinds:
        assert callable(loaders.import_loader(kind))


def test_a_table_that_is_a_link_out_of_the_corpus_is_refused(tmp_path: Path) -> None:
    linked = kemdy20.make(tmp_path / "A", (1,), segments_per_session=6, glitches=False).root
    (linked / "annotation").rename(tmp_path / "away")
    (linked / "annotation").symlink_to(tmp_path / "away")
    for kind, make, name in (
        ("kemdy19", kemdy19.make, "annotation/Session01_F_res.csv"),
        ("aihub-dialogue", aihub.make_dialogue, "4차년도.csv"),
        ("aihub-scripted", aihub.make_scripted, "스크립트.csv"),
        ("aihub-wellness", aihub.make_wellness, "emotiondialogue.csv"),
    ):
        root = make(tmp_path / kind).root
        (path,) = [path for path in root.rglob("*.csv") if _nfc(path, root) == name]
        path.rename(tmp_path / f"{kind}.csv")
        path.symlink_to(tmp_path / f"{kind}.csv")
        with pytest.raises(UsageError, match=r"reached by a link that leaves the corpus folder"):
            load(kind, root)
    with pytest.raises(UsageError, match=r"Sess01_eval\.csv is reached by a link that leaves"):
        load("kemdy20", linked)


def _nfc(path: Path, root: Path) -> str:
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


@pytest.mark.parametrize("ending", ["WAV", "Wav", "wAV"])
@pytest.mark.parametrize("kind", ["kemdy19", "kemdy20", "dialogue", "scripted", "wellness"])
def test_file_endings_are_read_in_any_case(tmp_path: Path, kind: str, ending: str) -> None:
    if kind.startswith("kemdy"):
        module = kemdy19 if kind == "kemdy19" else kemdy20
        root = module.make(tmp_path / "C", (1,), segments_per_session=4, glitches=False).root
        name: CorpusKind = kind  # type: ignore[assignment]
    else:
        root = getattr(aihub, f"make_{kind}")(tmp_path / "C").root
        name = f"aihub-{kind}"  # type: ignore[assignment]
    before = load(name, root)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        new = ending if path.suffix == ".wav" else path.suffix[1:].upper()
        path.rename(path.with_suffix(f".{new}"))
    after = load(name, root)
    paths = {Path(item.audio_path).suffix for item in utterances(after)}
    assert paths == {f".{ending}"}
    assert [item._replace(audio_path="") for item in utterances(after)] == [
        item._replace(audio_path="") for item in utterances(before)
    ]


@pytest.mark.parametrize("ending", ["WAV", "Wav", "wAV"])
def test_emodb_and_tables_read_endings_in_any_case(tmp_path: Path, ending: str) -> None:
    (tmp_path / "wav").mkdir()
    write_wav(tmp_path / f"wav/03a01Wa.{ending}", 0)
    [clip] = load("emodb", tmp_path)
    assert isinstance(clip, Utterance) and clip.utterance_id == "03a01Wa"
    (tmp_path / f"t.{ending}").write_text("안녕", encoding="utf-8")
    row = f"wav/03a01Wa.wav,t.{ending.lower()},sad,kim"
    (tmp_path / "t.CSV").write_text(f"audio_path,text_path,label,speaker\n{row}\n")
    [clip] = load("table", tmp_path / "t.CSV")
    assert isinstance(clip, Utterance) and clip.text == "안녕"
    assert clip.audio_path.endswith(ending)
