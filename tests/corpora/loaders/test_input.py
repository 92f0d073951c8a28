"""Wrong folders, wrong files and names that lead out of the corpus."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import pytest
from helpers.generators import kemdy19, kemdy20, table
from helpers.generators.parts import write_wav
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import CorpusConfig, CorpusKind
from multistill.corpora import loaders
from multistill.corpora.paths import Enclosure, listing
from multistill.corpora.records import Note, Rejected, Utterance
from multistill.errors import MultistillError, UsageError

KEMDY: tuple[CorpusKind, ...] = ("kemdy19", "kemdy20")


def load(kind: CorpusKind, root: Path) -> list[object]:
    return list(loaders.load(CorpusConfig(kind=kind, path=str(root))))


def make(kind: CorpusKind, root: Path) -> Path:
    generator = kemdy19 if kind == "kemdy19" else kemdy20
    return generator.make(root, sessions=(1,), segments_per_session=6, glitches=False).root


def annotation(root: Path) -> Path:
    return sorted((root / "annotation").iterdir())[0]


@pytest.mark.parametrize("kind", loaders.LOADERS)
def test_a_path_that_is_not_there_names_what_is_there_instead(
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


def test_a_file_where_a_folder_should_be_and_the_other_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"looked for the folder .*it is a file"):
        loaders.corpus_root(CorpusConfig(kind="kemdy20", path=str(tmp_path / "file")))
    with pytest.raises(UsageError, match=r"looked for the table file .*found file"):
        loaders.corpus_root(CorpusConfig(kind="table", path=str(tmp_path)))


@pytest.mark.parametrize("kind", KEMDY)
def test_a_folder_without_annotation_names_what_was_looked_for(
    tmp_path: Path, kind: CorpusKind
) -> None:
    (tmp_path / "wav").mkdir()
    with pytest.raises(UsageError, match=r"looked for annotation/Sess.*csv, found wav/"):
        load(kind, tmp_path)


@pytest.mark.parametrize("kind", KEMDY)
def test_a_folder_one_too_high_is_answered_with_the_right_one(
    tmp_path: Path, kind: CorpusKind
) -> None:
    root = make(kind, tmp_path / "release" / "KEMDy_v1")
    with pytest.raises(UsageError, match=f"did you mean {root}"):
        load(kind, root.parent)


@pytest.mark.parametrize("kind", KEMDY)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Segment ID", "ID", "row 1: no column `Segment ID`; found Numb"),
        ("Total Evaluation", "Total", "row 1: no column `Total Evaluation`"),
        (",Eval", ",Rater", "row 1: no evaluator columns"),
        ("Valence", "V", "row 2: no column `Valence` below `Total Evaluation`"),
    ],
)
def test_a_missing_column_names_file_row_and_column(
    tmp_path: Path, kind: CorpusKind, old: str, new: str, message: str
) -> None:
    path = annotation(make(kind, tmp_path / "K"))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=f"{path.name}: {message}"):
        load(kind, tmp_path / "K")


@pytest.mark.parametrize("kind", KEMDY)
def test_an_annotation_in_a_wrong_encoding_is_named(tmp_path: Path, kind: CorpusKind) -> None:
    path = annotation(make(kind, tmp_path / "K"))
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(UsageError, match=f"{path.name}: .*save it as UTF-8 or CP949"):
        load(kind, tmp_path / "K")


@pytest.mark.parametrize("kind", KEMDY)
def test_columns_are_found_by_name_not_by_number(tmp_path: Path, kind: CorpusKind) -> None:
    root = make(kind, tmp_path / "K")
    before = [item for item in load(kind, root) if isinstance(item, Utterance)]
    for path in (root / "annotation").iterdir():
        lines = path.read_text().splitlines()
        path.write_text("".join(f"x,{line}\n" for line in lines))
    assert [item for item in load(kind, root) if isinstance(item, Utterance)] == before


def test_an_absent_table_of_kemdy19_costs_that_speaker_only(tmp_path: Path) -> None:
    root = make("kemdy19", tmp_path / "K")
    (root / "annotation/Session01_M_res.csv").unlink()
    found = load("kemdy19", root)
    kept = [item for item in found if isinstance(item, Utterance)]
    assert {item.gender for item in kept} == {"F"}
    rejected = [item for item in found if isinstance(item, Rejected)]
    assert rejected[0].source == "annotation/Session01_M_res.csv"
    men = [item for item in rejected if "only the listener's table" in item.reason]
    assert len(kept) + len(men) == 6 and len(men) > 0


def test_kemdy19_never_joins_by_position(tmp_path: Path) -> None:
    """Turning one table upside down changes nothing but the line numbers."""
    root = kemdy19.make(tmp_path / "K", sessions=(1,), glitches=False).root
    before = [item for item in load("kemdy19", root) if isinstance(item, Utterance)]
    path = root / "annotation/Session01_M_res.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[:1:-1]))
    assert [item for item in load("kemdy19", root) if isinstance(item, Utterance)] == before


@pytest.mark.parametrize("kind", KEMDY)
def test_without_start_times_the_rows_tell_the_order_of_the_talk(
    tmp_path: Path, kind: CorpusKind
) -> None:
    root = make(kind, tmp_path / "K")
    for path in (root / "annotation").iterdir():
        head, lines = path.read_text().splitlines()[:2], path.read_text().splitlines()[2:]
        rows = [line.split(",") for line in lines]
        # The first table turned upside down, in the second every row as it was.
        rows = rows[::-1] if path == annotation(root) else rows
        body = [",".join([row[0], "", *row[2:]]) for row in rows]
        path.write_text("\n".join([*head, *body]) + "\n")
    kept = [item for item in load(kind, root) if isinstance(item, Utterance)]
    column = 9 if kind == "kemdy19" else 3
    named = [row.split(",")[column] for row in annotation(root).read_text().splitlines()[2:]]
    for dialogue in {item.dialogue for item in kept}:
        inside = [name for name in named if name.startswith(dialogue)]
        assert [item.utterance_id for item in kept if item.dialogue == dialogue] == inside
        assert [item.turn for item in kept if item.dialogue == dialogue] == list(range(len(inside)))


def test_session_17_of_kemdy20_loads_whether_its_clips_say_17_or_42(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K", sessions=(17,), segments_per_session=6, glitches=False)
    for path in list((truth.root / "wav/Session17").glob("Sess17*")):
        path.rename(path.with_name(path.name.replace("Sess17", "Sess42")))
    found = load("kemdy20", truth.root)
    kept = [item for item in found if isinstance(item, Utterance)]
    assert [item.utterance_id for item in kept] == [x.utterance_id for x in truth.utterances]
    assert all(Path(item.audio_path).name.startswith("Sess42") for item in kept)
    assert [item.kind for item in found if isinstance(item, Note)] == ["renamed ids"]


@pytest.mark.parametrize("kind", KEMDY)
def test_a_linked_session_folder_is_rejected(tmp_path: Path, kind: CorpusKind) -> None:
    root = make(kind, tmp_path / "K")
    (root / "wav/Session01").rename(tmp_path / "elsewhere")
    (root / "wav/Session01").symlink_to(tmp_path / "elsewhere")
    found = load(kind, root)
    assert len(found) == 6
    assert all(isinstance(item, Rejected) and "leaves the corpus" in item.reason for item in found)


def test_a_corpus_reached_through_a_link_is_read_where_the_job_says(tmp_path: Path) -> None:
    root = make("kemdy20", tmp_path / "real")
    (tmp_path / "link").symlink_to(root)
    found = load("kemdy20", tmp_path / "link")
    assert len(found) == 6
    for item in found:
        assert isinstance(item, Utterance) and Path(item.audio_path).is_relative_to(
            tmp_path / "link"
        )


names = st.lists(
    st.sampled_from(["..", ".", "in", "door", "a.wav", "out.wav", "", "/"]), min_size=1, max_size=6
).map("/".join)


@settings(max_examples=300, deadline=None)
@given(name=names)
def test_no_name_leads_out_of_the_root(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    base = tmp_path_factory.getbasetemp() / "enclosure"
    if not base.exists():
        (base / "root/in").mkdir(parents=True)
        write_wav(base / "root/a.wav", 1)
        write_wav(base / "root/in/a.wav", 2)
        write_wav(base / "out.wav", 3)
        (base / "root/door").symlink_to(base)
        (base / "root/in/out.wav").symlink_to(base / "out.wav")
    try:
        found = Path(Enclosure(base / "root").file(name))
    except ValueError:
        return
    assert found.resolve().is_relative_to((base / "root").resolve()) and found.is_file()


def test_a_link_within_the_root_is_a_file_like_any_other(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1)
    (tmp_path / "b.wav").symlink_to(tmp_path / "a.wav")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "no.wav")
    assert listing(tmp_path, tmp_path) == {"a.wav": True, "b.wav": True}
    assert Enclosure(tmp_path).file("b.wav") == str(tmp_path / "b.wav")
    with pytest.raises(ValueError, match="no such file"):
        Enclosure(tmp_path).file("gone.wav")


def test_limit_ends_the_corpus_after_so_many_utterances(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K")
    config = CorpusConfig(kind="kemdy20", path=str(truth.root), limit=7)
    found = [item for item in loaders.load(config) if isinstance(item, Utterance)]
    assert found == truth.utterances[:7]


def test_loading_never_writes(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load("kemdy20", truth.root)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Beyond 8-byte hashes of the ids, twenty times the rows need the memory of one time."""
    write_wav(tmp_path / "a.wav", 1)

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        with path.open("w") as stream:
            stream.write("utterance_id,audio_path,label,speaker,text\n")
            stream.writelines(f"u{n},a.wav,sad,kim,{'말' * 50}\n" for n in range(rows))
        found = loaders.load(CorpusConfig(kind="table", path=str(path)))
        tracemalloc.start()
        kept = sum(isinstance(item, Utterance) for item in found)
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept == rows
        return top

    small, large = peak(200), peak(4000)
    assert large - small < 3800 * 120


def test_loaders_are_lazy(tmp_path: Path) -> None:
    """The first record comes before a later session's table is opened."""
    truth = kemdy20.make(tmp_path / "K", sessions=(1, 2), segments_per_session=6, glitches=False)
    (truth.root / "annotation/Sess02_eval.csv").write_text("nonsense")
    records = loaders.load(CorpusConfig(kind="kemdy20", path=str(truth.root)))
    assert len(list(itertools.islice(records, 6))) == 6
    with pytest.raises(UsageError):
        next(records)


def unreadable(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied", "/data/x")


def test_a_transcript_that_may_not_be_read_costs_its_clip_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make("kemdy20", tmp_path / "K")
    monkeypatch.setattr("multistill.corpora.loaders.kemdy.read_transcript", unreadable)
    found = load("kemdy20", root)
    assert len(found) == 6
    assert all(isinstance(x, Rejected) and "Permission denied" in x.reason for x in found)


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make("kemdy20", tmp_path / "K")
    monkeypatch.setattr("multistill.corpora.loaders.kemdy.listing", unreadable)
    with pytest.raises(MultistillError, match="`kemdy20`: /data/x cannot be read: Permission"):
        load("kemdy20", root)


def test_every_kind_of_the_job_file_has_a_loader() -> None:
    kinds = CorpusKind.__args__
    assert set(loaders.LOADERS) == set(kinds)
    for kind in kinds:
        assert callable(loaders.loader(kind))


def test_a_table_is_loaded_by_its_own_kind(tmp_path: Path) -> None:
    truth = table.make(tmp_path / "own", glitches=False)
    assert len(load("table", truth.root)) == len(truth.utterances)
