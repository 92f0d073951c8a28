"""Both KEMDy loaders with wrong folders, invalid tables and missing files."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.corpora import load, reasons, utterance_ids, utterances
from helpers.generators import kemdy19, kemdy20

from multistill.config import CorpusKind
from multistill.corpora.records import Note, Rejected
from multistill.errors import UsageError

KEMDY: tuple[CorpusKind, ...] = ("kemdy19", "kemdy20")


def make(kind: CorpusKind, root: Path) -> Path:
    """A corpus of one session with six segments and no defects."""
    generator = kemdy19 if kind == "kemdy19" else kemdy20
    return generator.make(root, sessions=(1,), segments_per_session=6, glitches=False).root


def first_table(root: Path) -> Path:
    return sorted((root / "annotation").iterdir())[0]


@pytest.mark.parametrize("kind", KEMDY)
def test_a_folder_without_annotation_is_refused_with_what_was_expected(
    tmp_path: Path, kind: CorpusKind
) -> None:
    (tmp_path / "wav").mkdir()
    with pytest.raises(UsageError, match=r"looked for annotation/Sess.*csv, found wav/"):
        load(kind, tmp_path)


@pytest.mark.parametrize("kind", KEMDY)
def test_the_parent_of_the_corpus_is_refused_with_a_suggestion(
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
def test_a_missing_column_is_reported_with_file_and_row(
    tmp_path: Path, kind: CorpusKind, old: str, new: str, message: str
) -> None:
    path = first_table(make(kind, tmp_path / "K"))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=f"{path.name}: {message}"):
        load(kind, tmp_path / "K")


@pytest.mark.parametrize("kind", KEMDY)
def test_an_undecodable_annotation_table_is_reported(tmp_path: Path, kind: CorpusKind) -> None:
    path = first_table(make(kind, tmp_path / "K"))
    before = utterances(load(kind, tmp_path / "K"))
    text = path.read_text()
    path.write_bytes(text.encode("utf-16"))
    assert utterances(load(kind, tmp_path / "K")) == before
    path.write_bytes(text.encode("utf-16")[:-1])
    with pytest.raises(UsageError, match=f"{path.name}: not text in utf-16 .*save it as UTF-8"):
        load(kind, tmp_path / "K")


@pytest.mark.parametrize("kind", KEMDY)
def test_columns_are_found_by_name_not_by_number(tmp_path: Path, kind: CorpusKind) -> None:
    root = make(kind, tmp_path / "K")
    before = utterances(load(kind, root))
    for path in (root / "annotation").iterdir():
        lines = path.read_text().splitlines()
        path.write_text("".join(f"x,{line}\n" for line in lines))
    assert utterances(load(kind, root)) == before


def test_a_missing_table_of_kemdy19_rejects_only_that_speaker(tmp_path: Path) -> None:
    root = make("kemdy19", tmp_path / "K")
    (root / "annotation/Session01_M_res.csv").unlink()
    records = load("kemdy19", root)
    kept = utterances(records)
    assert {item.gender for item in kept} == {"F"}
    rejected = [item for item in records if isinstance(item, Rejected)]
    assert rejected[0].source == "annotation/Session01_M_res.csv"
    men = [item for item in rejected if "only in the listener's table" in item.reason]
    assert len(kept) + len(men) == 6 and len(men) > 0


def test_kemdy19_tables_are_joined_by_id_not_by_position(tmp_path: Path) -> None:
    """Reversing the rows of one table changes nothing but the line numbers."""
    root = kemdy19.make(tmp_path / "K", sessions=(1,), glitches=False).root
    before = utterances(load("kemdy19", root))
    path = root / "annotation/Session01_M_res.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[:1:-1]))
    assert utterances(load("kemdy19", root)) == before
    for item in before:
        assert item.style == ("scripted" if "script" in item.utterance_id else "improvised")
    assert {item.style for item in before} == {"scripted", "improvised"}


@pytest.mark.parametrize("kind", KEMDY)
def test_without_start_times_turns_follow_the_rows(tmp_path: Path, kind: CorpusKind) -> None:
    root = make(kind, tmp_path / "K")
    for path in (root / "annotation").iterdir():
        head, lines = path.read_text().splitlines()[:2], path.read_text().splitlines()[2:]
        rows = [line.split(",") for line in lines]
        # The rows of the first table are reversed, those of the second are not.
        rows = rows[::-1] if path == first_table(root) else rows
        body = [",".join([row[0], "", *row[2:]]) for row in rows]
        path.write_text("\n".join([*head, *body]) + "\n")
    kept = utterances(load(kind, root))
    column = 9 if kind == "kemdy19" else 3
    ids = [row.split(",")[column] for row in first_table(root).read_text().splitlines()[2:]]
    for dialogue in {item.dialogue for item in kept}:
        expected = [name for name in ids if name.startswith(dialogue)]
        turns = [item.turn for item in kept if item.dialogue == dialogue]
        assert [item.utterance_id for item in kept if item.dialogue == dialogue] == expected
        assert turns == list(range(len(expected)))


def test_clips_of_kemdy20_session_17_may_be_numbered_42(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K", sessions=(17,), segments_per_session=6, glitches=False)
    for path in list((truth.root / "wav/Session17").glob("Sess17*")):
        path.rename(path.with_name(path.name.replace("Sess17", "Sess42")))
    records = load("kemdy20", truth.root)
    assert utterance_ids(records) == [item.utterance_id for item in truth.utterances]
    names = [Path(item.audio_path).name for item in utterances(records)]
    assert all(name.startswith("Sess42") for name in names)
    assert [item.kind for item in records if isinstance(item, Note)] == ["renamed ids"]


@pytest.mark.parametrize("kind", KEMDY)
def test_a_linked_session_folder_is_rejected(tmp_path: Path, kind: CorpusKind) -> None:
    root = make(kind, tmp_path / "K")
    (root / "wav/Session01").rename(tmp_path / "elsewhere")
    (root / "wav/Session01").symlink_to(tmp_path / "elsewhere")
    records = load(kind, root)
    assert len(records) == 6
    assert all(isinstance(r, Rejected) and "leaves the corpus" in r.reason for r in records)


def test_an_unreadable_transcript_rejects_only_its_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/x")

    root = make("kemdy20", tmp_path / "K")
    monkeypatch.setattr("multistill.corpora.text.CorpusText.read", unreadable)
    records = load("kemdy20", root)
    assert len(records) == 6
    assert all(isinstance(r, Rejected) and "Permission denied" in r.reason for r in records)


def test_a_stray_quote_in_an_annotation_table_invalidates_only_its_row(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K", (1,), segments_per_session=60, glitches=False)
    path = truth.root / "annotation/Sess01_eval.csv"
    lines = path.read_bytes().split(b"\n")
    lines[7] = lines[7].replace(b",", b',"', 1)
    path.write_bytes(b"\n".join(lines))
    records = load("kemdy20", truth.root)
    assert len(utterance_ids(records)) == 59
    assert "never closed" in reasons(records)["annotation/Sess01_eval.csv:8"]


def test_without_its_table_the_recordings_of_a_session_are_rejected(tmp_path: Path) -> None:
    for kind, make, tables in (
        ("kemdy19", kemdy19.make, ["Session02_F_res.csv", "Session02_M_res.csv"]),
        ("kemdy20", kemdy20.make, ["Sess02_eval.csv"]),
    ):
        root = make(tmp_path / kind, (1, 2), segments_per_session=6, glitches=False).root
        for name in tables:
            (root / "annotation" / name).unlink()
        clip = next((root / "wav/Session01").rglob("*.wav"))
        strays = ["wav/Session01/more/a.wav", "wav/Session09/x.wav", "wav/y.wav"]
        strays += ["wav/Session01/stray.wav"]
        for name in strays:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(clip.read_bytes())
        (root / "wav/door").symlink_to(tmp_path)
        records = load(kind, root)
        rejected = reasons(records)
        unused = {path.relative_to(root).as_posix() for path in root.glob("wav/**/*.wav")}
        for item in utterances(records):
            unused.remove(Path(item.audio_path).relative_to(root).as_posix())
        assert len(utterance_ids(records)) == 6
        assert unused <= rejected.keys() and set(strays) <= unused
        missing = {name for name, reason in rejected.items() if reason.startswith("no such file")}
        assert {f"annotation/{name}" for name in tables} < missing
        assert "links are not followed" in rejected["wav/door"]
