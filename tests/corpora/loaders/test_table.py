"""Table corpora: all forms of labels, CSV and Parquet, invalid rows, mapped columns."""

from __future__ import annotations

import encodings.aliases
import re
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.corpora import load, utterances, write_table
from helpers.generators import table
from helpers.generators.parts import differences, write_wav
from helpers.generators.table import Form
from helpers.paths import ROOT

from multistill.config import CorpusConfig, SplitConfig
from multistill.corpora import loaders
from multistill.corpora.loaders.table import COLUMNS
from multistill.corpora.prepare import prepare
from multistill.corpora.records import Note, Record, Rejected, Utterance
from multistill.errors import UsageError

RANDOM = SplitConfig(by="random", allow_leak=True)
FORMS: tuple[Form, ...] = ("counts", "votes", "raters", "label")


def config(path: Path, **more: object) -> CorpusConfig:
    return CorpusConfig(kind="table", path=str(path), **more)


def one_row(folder: Path, header: str, row: str, **more: object) -> list[Record]:
    """The records of a table with one row, next to one recording, `a.wav`."""
    folder.mkdir(exist_ok=True)
    write_wav(folder / "a.wav", 1)
    (folder / "t.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    return load("table", folder / "t.csv", **more)


def blocks() -> list[str]:
    """The indented examples of docs/corpora.md."""
    page = ROOT / "docs" / "corpora.md"
    examples = re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", page.read_text(encoding="utf-8"))
    return [textwrap.dedent(block).strip("\n") for block in examples]


def test_the_table_in_the_documentation_loads(tmp_path: Path) -> None:
    (rows,) = [block for block in blocks() if block.startswith("audio_path,")]
    rows = rows.split("\n\n")[0]
    (tmp_path / "corpus.csv").write_text(rows + "\n", encoding="utf-8")
    for line in rows.splitlines()[1:]:
        path = tmp_path / line.split(",")[0]
        path.parent.mkdir(exist_ok=True)
        write_wav(path, len(line))
    records = load("table", tmp_path / "corpus.csv")
    assert len(utterances(records)) == len(records) == 2


def test_the_job_files_in_the_documentation_are_valid() -> None:
    jobs = [
        "corpora:" + part for block in blocks() for part in re.split(r"(?m)^corpora:", block)[1:]
    ]
    kinds = [
        CorpusConfig(**corpus).kind for job in jobs for corpus in yaml.safe_load(job)["corpora"]
    ]
    assert kinds == ["aihub-wellness", *["table"] * 6]


def test_the_documentation_names_every_column() -> None:
    page = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["corpus.csv", "corpus.parquet"])
def test_every_glitch_gives_exactly_the_expected_records(
    tmp_path: Path, form: Form, name: str
) -> None:
    truth = table.make(tmp_path / "own", name=name, form=form)
    assert len(truth.utterances) >= 10
    assert differences(truth, loaders.load(config(truth.root))) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encoding_and_delimiter_do_not_change_the_records(
    tmp_path: Path, encoding: str, delimiter: str
) -> None:
    truth = table.make(tmp_path / "own", encoding=encoding, delimiter=delimiter)
    assert differences(truth, loaders.load(config(truth.root))) == []


def test_columns_with_other_names_can_be_mapped(tmp_path: Path) -> None:
    renamed = {"audio_path": "파일", "text": "문장", "speaker": "화자", "rater_a": "김"}
    truth = table.make(tmp_path / "own", form="raters", renamed=renamed)
    assert differences(truth, loaders.load(config(truth.root, columns=renamed))) == []


def test_audio_may_be_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = table.make(tmp_path / "own", glitches=False)
    moved = tmp_path / "tables" / "corpus.csv"
    moved.parent.mkdir()
    truth.root.rename(moved)
    monkeypatch.chdir(moved.parent)
    for root in (tmp_path / "own", Path("../own")):
        paths = [Path(u.audio_path) for u in utterances(load("table", moved, audio_root=str(root)))]
        assert len(paths) == len(truth.utterances)
        assert all(path.is_absolute() and path.is_file() for path in paths)


def test_a_missing_audio_root_is_reported(tmp_path: Path) -> None:
    header = "audio_path,label,speaker"
    with pytest.raises(UsageError, match=r"looked for the folder .*gone \(audio_root\)"):
        one_row(tmp_path, header, "a.wav,sad,kim", audio_root=str(tmp_path / "gone"))


def test_defaults_of_a_table_with_the_required_columns_only(tmp_path: Path) -> None:
    (item,) = one_row(tmp_path / "own", "audio_path,label,speaker", "a.wav,Happiness,kim")
    assert isinstance(item, Utterance)
    assert (item.utterance_id, item.label, item.text, item.turn) == ("a", "happy", "", 0)
    assert (item.speaker, item.session, item.dialogue) == ("kim", "kim", "a")


def test_a_transcript_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("어제\n".encode("cp949"))
    header = "audio_path,label,speaker,text_path"
    (item,) = one_row(tmp_path, header, "a.wav,sad,kim,a.txt")
    assert isinstance(item, Utterance) and (item.text, item.encoding) == ("어제", "cp949")
    (tmp_path / "a.txt").write_text("für Tüten", encoding="utf-8")
    (item,) = one_row(tmp_path, header, "a.wav,sad,kim,a.txt")
    assert isinstance(item, Utterance) and (item.text, item.encoding) == ("für Tüten", "utf-8")
    (outside,) = one_row(tmp_path, header, "a.wav,sad,kim,../../secret.txt")
    assert isinstance(outside, Rejected) and "leaves the corpus folder" in outside.reason


def test_an_unknown_class_is_rejected_unless_mapped(tmp_path: Path) -> None:
    header, row = "audio_path,label,speaker", "a.wav,boredom,kim"
    (rejected,) = one_row(tmp_path, header, row)
    assert isinstance(rejected, Rejected) and rejected.source == "t.csv:2"
    (kept,) = one_row(tmp_path, header, row, labels={"Boredom": "neutral"})
    assert isinstance(kept, Utterance) and kept.label == "neutral"


def test_a_label_that_contradicts_the_votes_is_noted(tmp_path: Path) -> None:
    note, item = one_row(tmp_path, "audio_path,label,speaker,happy,sad", "a.wav,happy,kim,1,3")
    assert isinstance(note, Note) and note.kind == "recount"
    assert isinstance(item, Utterance) and item.votes == (0, 1, 0, 0, 3, 0, 0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,label,speaker", r"row 1: no column `audio_path`; found text, label, speaker"),
        ("audio_path,text,speaker", r"row 1: no labels; add a column `label`"),
        ("audio_path,label", r"row 1: no column `speaker` or `session`"),
        ("audio_path,label,label,speaker", r"row 1: two columns are named `label`"),
        (" , ", r"row 1: no header"),
    ],
)
def test_an_invalid_header_is_reported_with_file_and_column(
    tmp_path: Path, header: str, message: str
) -> None:
    with pytest.raises(UsageError, match=r"t\.csv: " + message):
        one_row(tmp_path, header, "x,x,x")


def test_an_invalid_column_mapping_is_reported(tmp_path: Path) -> None:
    header = "audio_path,label,speaker"
    with pytest.raises(UsageError, match="no column `words`; found audio_path, label, speaker"):
        one_row(tmp_path, header, "a.wav,sad,kim", columns={"text": "words"})
    with pytest.raises(UsageError, match=r"columns\.speeker is not .*did you mean `speaker`"):
        one_row(tmp_path, header, "a.wav,sad,kim", columns={"speeker": "speaker"})


def test_numeric_names_in_parquet_have_no_decimal_point(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1)
    columns = {"audio_path": ["a.wav"], "label": ["sad"], "speaker": [7.0], "session": [3]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (item,) = loaders.load(config(tmp_path / "t.parquet"))
    assert isinstance(item, Utterance) and (item.speaker, item.session) == ("7", "3")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("turn", "3000000000"),
        ("turn", str(10**12)),
        ("turn", "9" * 5000),
        ("happy", "99999999999"),
        ("happy", "1e300"),
        ("votes", "[1, 1, 1e300, 1, 1, 1, 1]"),
    ],
)
def test_a_number_too_large_for_the_manifest_rejects_its_row(
    tmp_path: Path, column: str, value: str
) -> None:
    good = {"turn": "7", "happy": "3", "votes": "[1, 2, 1, 0, 0, 0, 0]"}[column]
    rows = [f'{i}.wav,{"sad" if i % 4 else "happy"},kim,"{good}"' for i in range(40)]
    rows[3] = f'3.wav,sad,kim,"{value}"'
    path = write_table(tmp_path / "own", rows, f"audio_path,label,speaker,{column}")
    summary = prepare([config(path)], RANDOM, tmp_path, unpacked=tmp_path)
    assert (summary["utterances"], summary["rejected"]) == (39, 1)
    (row,) = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert row["source"] == "table/t.csv:5"
    assert f"column `{column}`: `" in row["reason"] and len(row["reason"]) < 150


def test_unknown_words_in_the_split_column_matter_only_if_it_is_used(tmp_path: Path) -> None:
    words = ["train", "VAL", "eval", "fold3", ""] * 8
    rows = [f"{i}.wav,{word},{'happy' if i % 4 else 'sad'},p{i}" for i, word in enumerate(words)]
    path = write_table(tmp_path / "own", rows, "audio_path,split,label,speaker")
    splits = [item.split for item in utterances(load("table", path))]
    assert splits == ["train", "valid", "test", "fold3", None] * 8
    summary = prepare([config(path)], RANDOM, tmp_path, unpacked=tmp_path)
    assert (summary["utterances"], summary["rejected"]) == (40, 0)
    with pytest.raises(UsageError, match=r"split\.by: column: table/3 has `fold3` where train"):
        prepare([config(path)], SplitConfig(by="column"), tmp_path, unpacked=tmp_path)


CODECS = sorted({*encodings.aliases.aliases.values(), "idna", "punycode", "undefined"})


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in unicode_escape
def test_any_encoding_of_python_reads_any_table_or_is_refused(tmp_path: Path, name: str) -> None:
    write_wav(tmp_path / "a.wav", 1)
    table = "audio_path,text,label,speaker\na.wav,안녕 für,happy,s\n"
    contents = [table.encode(), table.encode("utf-16-le"), table.encode("utf-16")]
    contents += [bytes(range(256)), b"", b"\x1b$B!\n", table.encode() + b"\xff\\x,\\"]
    refused = 0
    for content in contents:
        (tmp_path / "t.csv").write_bytes(content)
        try:
            records = load("table", tmp_path / "t.csv", encoding=name)
        except UsageError as error:
            assert len(str(error).splitlines()) == 1
        except ValueError as error:
            assert f"`{name}`" in str(error)
            refused += 1
        else:
            rows = [record for record in records if isinstance(record, Utterance | Rejected)]
            assert len(rows) <= content.count(b"\n") + 1
    assert refused in {0, len(contents)}


@pytest.mark.parametrize("name", ["idna", "punycode", "undefined", "base64", "rot13", "nonsense"])
def test_a_codec_that_is_no_text_encoding_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`.*; use cp949, utf-8, cp1252 or another"):
        config(tmp_path / "t.csv", encoding=name)


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("name", ["utf-16", "utf_32"])
def test_an_encoding_that_needs_a_mark_asks_for_the_order_of_its_bytes(
    tmp_path: Path, name: str, order: str
) -> None:
    write_wav(tmp_path / "a.wav", 1)
    rows = "audio_path,text,label,speaker\na.wav,안녕,happy,s\n"
    (tmp_path / "t.csv").write_bytes(rows.encode(f"{name}-{order}"))
    with pytest.raises(UsageError, match="has no byte order mark") as refused:
        load("table", tmp_path / "t.csv", encoding=name)
    advice = re.findall(r"utf-\d\d-[lb]e", str(refused.value))
    [right] = [item for item in advice if item.endswith(order)]
    [utterance] = utterances(load("table", tmp_path / "t.csv", encoding=right))
    assert utterance.text == "안녕"


@pytest.mark.parametrize(
    ("age", "style", "expected", "notes"),
    [
        ("31", "script", (31.0, "scripted"), 0),
        ("", "Impro", (None, "improvised"), 0),
        ("27.5", "radio play", (27.5, "radio play"), 0),
        ("20대", "", (None, None), 1),
        ("-3", "scripted", (None, "scripted"), 1),
        ("nan", "", (None, None), 1),
    ],
)
def test_age_and_style_are_read_and_what_is_no_age_is_noted(
    tmp_path: Path, age: str, style: str, expected: tuple[object, object], notes: int
) -> None:
    records = one_row(
        tmp_path / "t", "audio_path,label,speaker,age,style", f"a.wav,sad,p,{age},{style}"
    )
    (item,) = utterances(records)
    assert (item.age, item.style) == expected
    noted = [record for record in records if isinstance(record, Note)]
    assert [note.kind for note in noted] == ["no age"] * notes
