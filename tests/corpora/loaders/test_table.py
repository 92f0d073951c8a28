"""A corpus of one's own by a table: every form of labels, CSV and Parquet, bad rows."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.generators import table
from helpers.generators.parts import differences, write_wav
from helpers.generators.table import Form
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import CorpusConfig
from multistill.corpora import loaders
from multistill.corpora.loaders.table import COLUMNS
from multistill.corpora.records import Note, Record, Rejected, SeenIds, Utterance
from multistill.errors import UsageError

FORMS: tuple[Form, ...] = ("counts", "votes", "raters", "label")


def config(path: Path, **more: object) -> CorpusConfig:
    return CorpusConfig(kind="table", path=str(path), **more)


def one_row(folder: Path, header: str, row: str, **more: object) -> list[Record]:
    """The records of a table of one row beside one recording, `a.wav`."""
    folder.mkdir(exist_ok=True)
    write_wav(folder / "a.wav", 1)
    (folder / "t.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    return list(loaders.load(config(folder / "t.csv", **more)))


def blocks() -> list[str]:
    """The indented examples of docs/corpora.md."""
    page = ROOT / "docs" / "corpora.md"
    found = re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", page.read_text(encoding="utf-8"))
    return [textwrap.dedent(block).strip("\n") for block in found]


def test_the_examples_of_the_documentation_load(tmp_path: Path) -> None:
    (rows,) = [block for block in blocks() if block.startswith("audio_path,")]
    rows = rows.split("\n\n")[0]
    (tmp_path / "corpus.csv").write_text(rows + "\n", encoding="utf-8")
    for line in rows.splitlines()[1:]:
        path = tmp_path / line.split(",")[0]
        path.parent.mkdir(exist_ok=True)
        write_wav(path, len(line))
    found = list(loaders.load(config(tmp_path / "corpus.csv")))
    assert len(found) == 2 and all(isinstance(item, Utterance) for item in found)


def test_the_job_files_of_the_documentation_are_valid() -> None:
    jobs = [
        "corpora:" + part for block in blocks() for part in re.split(r"(?m)^corpora:", block)[1:]
    ]
    kinds = [
        CorpusConfig(**corpus).kind for job in jobs for corpus in yaml.safe_load(job)["corpora"]
    ]
    assert kinds == ["aihub-wellness", "table", "table"]


def test_the_documentation_names_every_column() -> None:
    page = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["corpus.csv", "corpus.parquet"])
def test_every_bad_row_gives_exactly_the_expected_records(
    tmp_path: Path, form: Form, name: str
) -> None:
    truth = table.make(tmp_path / "own", name=name, form=form)
    assert len(truth.utterances) >= 10
    assert differences(truth, loaders.load(config(truth.root))) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_any_encoding_and_delimiter_gives_the_same_records(
    tmp_path: Path, encoding: str, delimiter: str
) -> None:
    truth = table.make(tmp_path / "own", encoding=encoding, delimiter=delimiter)
    assert differences(truth, loaders.load(config(truth.root))) == []


def test_columns_of_any_name_are_mapped(tmp_path: Path) -> None:
    renamed = {"audio_path": "파일", "text": "문장", "speaker": "화자", "rater_a": "김"}
    truth = table.make(tmp_path / "own", form="raters", renamed=renamed)
    assert differences(truth, loaders.load(config(truth.root, columns=renamed))) == []


def test_audio_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = table.make(tmp_path / "own", glitches=False)
    moved = tmp_path / "tables" / "corpus.csv"
    moved.parent.mkdir()
    truth.root.rename(moved)
    monkeypatch.chdir(moved.parent)
    for root in (tmp_path / "own", Path("../own")):
        found = list(loaders.load(config(moved, audio_root=str(root))))
        kept = [item for item in found if isinstance(item, Utterance)]
        assert len(kept) == len(truth.utterances)
        assert all(
            Path(item.audio_path).is_absolute() and Path(item.audio_path).is_file() for item in kept
        )


def test_an_audio_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    header = "audio_path,label,speaker"
    with pytest.raises(UsageError, match=r"looked for the folder .*gone \(audio_root\)"):
        one_row(tmp_path, header, "a.wav,sad,kim", audio_root=str(tmp_path / "gone"))


def test_least_columns_and_their_defaults(tmp_path: Path) -> None:
    (found,) = one_row(tmp_path / "own", "audio_path,label,speaker", "a.wav,Happiness,kim")
    assert isinstance(found, Utterance)
    assert (found.utterance_id, found.label, found.text, found.turn) == ("a", "happy", "", 0)
    assert (found.speaker, found.session, found.dialogue) == ("kim", "kim", "a")


def test_a_transcript_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("어제\n".encode("cp949"))
    header = "audio_path,label,speaker,text_path"
    (found,) = one_row(tmp_path, header, "a.wav,sad,kim,a.txt")
    assert isinstance(found, Utterance) and (found.text, found.encoding) == ("어제", "cp949")
    (tmp_path / "a.txt").write_text("für Tüten", encoding="utf-8")
    (found,) = one_row(tmp_path, header, "a.wav,sad,kim,a.txt")
    assert isinstance(found, Utterance) and (found.text, found.encoding) == ("für Tüten", "utf-8")
    (outside,) = one_row(tmp_path, header, "a.wav,sad,kim,../../secret.txt")
    assert isinstance(outside, Rejected) and "leaves the corpus folder" in outside.reason


def test_a_foreign_class_is_rejected_unless_mapped(tmp_path: Path) -> None:
    header, row = "audio_path,label,speaker", "a.wav,boredom,kim"
    (out,) = one_row(tmp_path, header, row)
    assert isinstance(out, Rejected) and out.source == "t.csv:2"
    (kept,) = one_row(tmp_path, header, row, labels={"Boredom": "neutral"})
    assert isinstance(kept, Utterance) and kept.label == "neutral"


def test_a_label_that_the_votes_deny_is_reported(tmp_path: Path) -> None:
    found = one_row(tmp_path, "audio_path,label,speaker,happy,sad", "a.wav,happy,kim,1,3")
    assert [type(item) for item in found] == [Note, Utterance]
    assert isinstance(found[0], Note) and found[0].kind == "recount"
    assert isinstance(found[1], Utterance) and found[1].votes == (0, 1, 0, 0, 3, 0, 0)


def test_row_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    rows = '"a.wav","sad","two\nlines","kim"\nb.wav,sad,x,kim\nshort,row\n'
    write_wav(tmp_path / "a.wav", 1)
    (tmp_path / "t.csv").write_text("audio_path,label,text,speaker\n" + rows)
    first, missing, short = loaders.load(config(tmp_path / "t.csv"))
    assert isinstance(first, Utterance) and first.text == "two lines"
    assert isinstance(missing, Rejected) and missing.source == "t.csv:4"
    assert short == Rejected("t.csv:5", "the row has 2 columns where the header has 4")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,label,speaker", r"row 1: no column `audio_path`; found text, label, speaker"),
        ("audio_path,text,speaker", r"row 1: no labels; needs a column `label`"),
        ("audio_path,label", r"row 1: no column `speaker` or `session`"),
        ("audio_path,label,label,speaker", r"row 1: two columns are called `label`"),
        (" , ", r"row 1: no header"),
    ],
)
def test_a_missing_column_names_file_row_and_column(
    tmp_path: Path, header: str, message: str
) -> None:
    with pytest.raises(UsageError, match=r"t\.csv: " + message):
        one_row(tmp_path, header, "x,x,x")


def test_a_mapped_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    header = "audio_path,label,speaker"
    with pytest.raises(UsageError, match="no column `words`; found audio_path, label, speaker"):
        one_row(tmp_path, header, "a.wav,sad,kim", columns={"text": "words"})
    with pytest.raises(UsageError, match=r"columns\.speeker is no column .*did you mean `speaker`"):
        one_row(tmp_path, header, "a.wav,sad,kim", columns={"speeker": "speaker"})


def test_a_table_in_a_wrong_encoding_names_the_row(tmp_path: Path) -> None:
    text = "audio_path,label,speaker\na.wav,sad,김\n"
    for encoded in (text.encode("utf-16"), text.replace("김", "kim").encode("utf-16-le")):
        (tmp_path / "t.csv").write_bytes(encoded)
        with pytest.raises(UsageError, match=r"t\.csv: row 1: text in none of"):
            list(loaders.load(config(tmp_path / "t.csv")))
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8") + b"b.wav,sad,\xff\xfe\n")
    with pytest.raises(UsageError, match=r"t\.csv: row 3: text in none of"):
        list(loaders.load(config(tmp_path / "t.csv")))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"audio_path": ["a.wav"]}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"t\.parquet: not a readable Parquet file"):
        list(loaders.load(config(tmp_path / "t.parquet")))


def test_numbers_in_parquet_are_names_without_a_point(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1)
    columns = {"audio_path": ["a.wav"], "label": ["sad"], "speaker": [7.0], "session": [3]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (found,) = loaders.load(config(tmp_path / "t.parquet"))
    assert isinstance(found, Utterance) and (found.speaker, found.session) == ("7", "3")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=3), max_size=40))
def test_names_are_known_after_they_were_added_and_not_before(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multistill.corpora.records._RECENT", 4)
        seen, known = SeenIds(), set()
        for name in names:
            assert seen.is_new(name) == (name not in known)
            known.add(name)
