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


def test_an_undecodable_table_is_reported_with_its_row(tmp_path: Path) -> None:
    text = "audio_path,label,speaker\na.wav,sad,김\n"
    for encoded in (text.encode("utf-16"), text.replace("김", "kim").encode("utf-16-le")):
        (tmp_path / "t.csv").write_bytes(encoded)
        with pytest.raises(UsageError, match=r"t\.csv: row 1: not text in utf-8-sig"):
            load("table", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8") + b"b.wav,sad,\xff\xfe\n")
    with pytest.raises(UsageError, match=r"t\.csv: row 3: not text in utf-8-sig"):
        load("table", tmp_path / "t.csv")


def test_a_truncated_parquet_file_is_reported(tmp_path: Path) -> None:
    pq.write_table(pa.table({"audio_path": ["a.wav"]}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"t\.parquet: not a readable Parquet file"):
        load("table", tmp_path / "t.parquet")
