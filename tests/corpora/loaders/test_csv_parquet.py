"""CSV and Parquet tables: an invalid row is rejected, an unreadable table raises."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.corpora import load, reasons, utterance_ids, write_table
from helpers.generators import table
from helpers.generators.parts import write_wav

from multistill.corpora.records import Rejected, Utterance
from multistill.errors import UsageError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"말', "the quote that opens here is never closed; close it, or write it twice"),
        ('"' + "말" * 140_000 + '"', "field larger than field limit (131072)"),
    ],
)
def test_a_stray_quote_invalidates_only_its_row(tmp_path: Path, text: str, reason: str) -> None:
    rows = [f"{i}.wav,말,sad,kim" for i in range(60)]
    rows[5] = f"5.wav,{text},sad,kim"
    records = load("table", write_table(tmp_path, rows))
    assert utterance_ids(records) == [str(i) for i in range(60) if i != 5]
    assert reasons(records) == {"t.csv:7": reason}


def test_a_stray_quote_closed_by_a_later_one_invalidates_only_its_row(tmp_path: Path) -> None:
    for name, end in (("next", '"그래", 왜'), ("same", '그래"'), ("whole", '"그래"')):
        rows = [f"{i}.wav,말,sad,kim" for i in range(20)]
        rows[5], rows[9] = '5.wav,"말,sad,kim', f"9.wav,{end},sad,kim"
        records = load("table", write_table(tmp_path / name, rows))
        rejected = reasons(records)
        assert "closes in line 11, after other rows" in rejected["t.csv:7"]
        assert len(rejected) + len(utterance_ids(records)) == 20
        assert len(rejected) == (2 if name == "next" else 1)


def test_a_quoted_text_with_line_breaks_and_commas_is_one_row(tmp_path: Path) -> None:
    rows = ['0.wav,"그래, 왜\n아니, 그냥, 뭐, 음\n응",sad,kim', "1.wav,말,sad,kim"]
    assert utterance_ids(load("table", write_table(tmp_path, rows))) == ["0", "1"]


def test_an_unclosed_quote_in_the_header_is_reported(tmp_path: Path) -> None:
    path = write_table(tmp_path, ["0.wav,말,sad,kim"] * 9, 'audio_path,"text,label,speaker')
    with pytest.raises(UsageError, match=r"t\.csv: row 1: the quote .* is never closed"):
        load("table", path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", [b"abc"], "column `text` contains bytes"),
        ("text", [["a", "b"]], "column `text` contains lists"),
        ("votes", [{"happy": 3}], "column `votes` contains values of type struct"),
        ("votes", [[[1], [2]]], "column `votes` contains lists of lists"),
    ],
)
def test_an_unsupported_parquet_column_is_reported(
    tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    columns = {"audio_path": ["a.wav"], "label": ["sad"], "speaker": ["kim"], column: values}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=rf"t\.parquet: {message}.*; save it as text or numbers"):
        load("table", tmp_path / "t.parquet")


def test_a_parquet_file_with_damaged_pages_is_reported(tmp_path: Path) -> None:
    truth = table.make(tmp_path / "own", "t.parquet", glitches=False)
    data = bytearray(truth.root.read_bytes())
    data[4:400] = b"\xff" * 396
    truth.root.write_bytes(data)
    with pytest.raises(UsageError, match=r"t\.parquet: cannot be read after row 0: .*damaged"):
        load("table", truth.root)


def test_row_numbers_are_line_numbers_of_the_file(tmp_path: Path) -> None:
    rows = '"a.wav","sad","two\nlines","kim"\nb.wav,sad,x,kim\nshort,row\n'
    write_wav(tmp_path / "a.wav", 1)
    (tmp_path / "t.csv").write_text("audio_path,label,text,speaker\n" + rows)
    first, missing, short = load("table", tmp_path / "t.csv")
    assert isinstance(first, Utterance) and first.text == "two lines"
    assert isinstance(missing, Rejected) and missing.source == "t.csv:4"
    assert short == Rejected("t.csv:5", "the row has 2 columns where the header has 4")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16", "utf-16-le"])
def test_a_table_is_read_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    write_wav(tmp_path / "a.wav", 1)
    text = "audio_path,label,speaker,text\na.wav,sad,김,어제 눈이 왔어\n"
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    (item,) = load("table", tmp_path / "t.csv")
    assert isinstance(item, Utterance) and (item.speaker, item.text) == ("김", "어제 눈이 왔어")


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"x\0", b"\x80"])
def test_a_row_that_is_no_text_is_rejected_alone(tmp_path: Path, damage: bytes) -> None:
    write_wav(tmp_path / "a.wav", 1)
    text = "audio_path,label,speaker,text\na.wav,sad,김,어제\na.wav,sad,이,오늘\n"
    data = text.encode() + b"a.wav,sad,kim," + damage + b"\n"
    (tmp_path / "t.csv").write_bytes(data)
    records = load("table", tmp_path / "t.csv")
    assert records[-1] == Rejected("t.csv:4", "the row is not text in utf-8")


def test_the_encoding_of_a_table_can_be_set(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1)
    row = "audio_path,label,speaker,text\na.wav,sad,kim,Ärger\n".encode("mac-roman")
    (tmp_path / "t.csv").write_bytes(row)
    (item,) = load("table", tmp_path / "t.csv", encoding="mac-roman")
    assert isinstance(item, Utterance) and (item.text, item.encoding) == ("Ärger", "mac-roman")


def test_a_truncated_parquet_file_is_reported(tmp_path: Path) -> None:
    pq.write_table(pa.table({"audio_path": ["a.wav"]}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"t\.parquet: not a readable Parquet file"):
        load("table", tmp_path / "t.parquet")
