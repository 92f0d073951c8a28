"""Damage that must cost one row or one file, or end the stage with a sentence: never the rest."""

from __future__ import annotations

import os
import struct
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.generators import aihub, kemdy19, kemdy20, table
from helpers.generators.parts import write_wav

from multistill.config import CorpusConfig, CorpusKind, SplitConfig
from multistill.corpora import loaders
from multistill.corpora.audio import read_header
from multistill.corpora.manifest import read_manifest
from multistill.corpora.paths import Enclosure, listing
from multistill.corpora.prepare import listing as digest
from multistill.corpora.prepare import prepare
from multistill.corpora.records import Record, Rejected, Utterance
from multistill.errors import UsageError
from multistill.workspace import read_json

RANDOM = SplitConfig(by="random", allow_leak=True)


def load(kind: CorpusKind, root: Path, **more: object) -> list[Record]:
    return list(loaders.load(CorpusConfig(kind=kind, path=str(root), **more)))


def rejected(records: list[Record]) -> dict[str, str]:
    return {item.source: item.reason for item in records if isinstance(item, Rejected)}


def kept(records: list[Record]) -> list[str]:
    return [item.utterance_id for item in records if isinstance(item, Utterance)]


def own(folder: Path, rows: list[str], header: str = "audio_path,text,label,speaker") -> Path:
    """A table whose rows name recordings that are there, `0.wav`, `1.wav`, ..."""
    folder.mkdir(exist_ok=True)
    for at in range(len(rows)):
        write_wav(folder / f"{at}.wav", at)
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"말', "a quote that opens here is never closed; close it, or write it twice"),
        ('"' + "말" * 140_000 + '"', "field larger than field limit (131072)"),
    ],
)
def test_a_stray_quote_costs_its_own_row_only(tmp_path: Path, text: str, reason: str) -> None:
    rows = [f"{at}.wav,말,sad,kim" for at in range(60)]
    rows[5] = f"5.wav,{text},sad,kim"
    found = load("table", own(tmp_path, rows))
    assert kept(found) == [str(at) for at in range(60) if at != 5]
    assert rejected(found) == {"t.csv:7": reason}


def test_a_stray_quote_that_a_later_one_closes_costs_its_own_row_only(tmp_path: Path) -> None:
    for name, end in (("next", '"그래", 왜'), ("same", '그래"'), ("whole", '"그래"')):
        rows = [f"{at}.wav,말,sad,kim" for at in range(20)]
        rows[5], rows[9] = '5.wav,"말,sad,kim', f"9.wav,{end},sad,kim"
        found = load("table", own(tmp_path / name, rows))
        reasons = rejected(found)
        assert "closes in line 11, beyond other rows" in reasons["t.csv:7"]
        assert len(reasons) + len(kept(found)) == 20
        assert len(reasons) == (2 if name == "next" else 1)


def test_a_text_of_several_lines_and_commas_is_one_row(tmp_path: Path) -> None:
    rows = ['0.wav,"그래, 왜\n아니, 그냥, 뭐, 음\n응",sad,kim', "1.wav,말,sad,kim"]
    assert kept(load("table", own(tmp_path, rows))) == ["0", "1"]


def test_a_quote_in_the_header_that_is_not_closed_is_named(tmp_path: Path) -> None:
    path = own(tmp_path, ["0.wav,말,sad,kim"] * 9, 'audio_path,"text,label,speaker')
    with pytest.raises(UsageError, match=r"t\.csv: row 1: a quote that opens here is never closed"):
        load("table", path)


def test_a_stray_quote_in_a_kemdy_table_costs_its_own_row_only(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K", (1,), segments_per_session=60, glitches=False)
    path = truth.root / "annotation/Sess01_eval.csv"
    lines = path.read_bytes().split(b"\n")
    lines[7] = lines[7].replace(b",", b',"', 1)
    path.write_bytes(b"\n".join(lines))
    found = load("kemdy20", truth.root)
    assert len(kept(found)) == 59
    assert "never closed" in rejected(found)["annotation/Sess01_eval.csv:8"]


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
def test_a_number_too_large_for_the_manifest_costs_its_row(
    tmp_path: Path, column: str, value: str
) -> None:
    good = {"turn": "7", "happy": "3", "votes": "[1, 2, 1, 0, 0, 0, 0]"}[column]
    rows = [f'{at}.wav,sad,kim,"{good}"' for at in range(40)]
    rows[3] = f'3.wav,sad,kim,"{value}"'
    path = own(tmp_path / "own", rows, f"audio_path,label,speaker,{column}")
    config = CorpusConfig(kind="table", path=str(path))
    made = prepare([config], RANDOM, 1, tmp_path, unpacked=tmp_path, workers=1)
    assert (made["utterances"], made["rejected"]) == (39, 1)
    (row,) = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert row["source"] == "table/t.csv:5"
    assert f"column `{column}` says `" in row["reason"] and len(row["reason"]) < 150


@pytest.mark.parametrize(("rate", "channels"), [(4_000_000_000, 1), (16_000, 40_000)])
def test_a_header_that_no_audio_has_is_a_reason(tmp_path: Path, rate: int, channels: int) -> None:
    write_wav(tmp_path / "a.wav", 1, 80_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[22:28] = struct.pack("<HI", channels, rate)
    data[32:36] = struct.pack("<HH", channels, 8)
    (tmp_path / "a.wav").write_bytes(data)
    assert "which no audio has" in str(read_header(str(tmp_path / "a.wav")))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", [b"abc"], "column `text` holds bytes"),
        ("text", [["a", "b"]], "column `text` holds lists"),
        ("votes", [{"happy": 3}], "column `votes` holds values of type struct"),
        ("votes", [[[1], [2]]], "column `votes` holds lists of lists"),
    ],
)
def test_a_parquet_column_of_another_kind_is_named(
    tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    columns = {"audio_path": ["a.wav"], "label": ["sad"], "speaker": ["kim"], column: values}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=rf"t\.parquet: {message}.*; save it as text or numbers"):
        load("table", tmp_path / "t.parquet")


def test_a_parquet_file_with_damage_inside_is_named(tmp_path: Path) -> None:
    truth = table.make(tmp_path / "own", "t.parquet", glitches=False)
    data = bytearray(truth.root.read_bytes())
    data[4:400] = b"\xff" * 396
    truth.root.write_bytes(data)
    with pytest.raises(UsageError, match=r"t\.parquet: cannot be read after row 0: .*damaged"):
        load("table", truth.root)


def test_names_in_another_unicode_form_than_on_disk_are_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = root / "녹음" / unicodedata.normalize("NFD", "하루")
    folder.mkdir(parents=True)
    on_disk = folder / unicodedata.normalize("NFD", "가.wav")
    write_wav(on_disk, 1)
    assert Enclosure(root).file("녹음/하루/가.wav") == str(on_disk)
    with pytest.raises(ValueError, match="no such file"):
        Enclosure(root).file("녹음/하루/나.wav")
    write_wav(tmp_path / "out.wav", 1)
    (root / unicodedata.normalize("NFD", "밖")).symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leaves the corpus folder"):
        Enclosure(root).file("밖/out.wav")


def test_a_link_to_itself_is_one_bad_file(tmp_path: Path) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    assert listing(tmp_path, tmp_path) == {"loop.wav": True}
    assert "cannot be opened" in str(read_header(str(tmp_path / "loop.wav")))
    with pytest.raises(ValueError, match="no such file"):
        Enclosure(tmp_path).file("loop.wav")


def test_a_file_whose_name_is_not_utf8_is_rejected_by_an_escaped_name(tmp_path: Path) -> None:
    truth = aihub.make_scripted(tmp_path / "S")
    folder = next(path for path in sorted(truth.root.iterdir()) if path.is_dir())
    folder.rename(os.fsdecode(os.fsencode(truth.root) + "/감정".encode("cp949")))
    config = CorpusConfig(kind="aihub-scripted", path=str(truth.root))
    assert digest([config]) == digest([config])
    made = prepare([config], RANDOM, 1, tmp_path, unpacked=tmp_path, workers=1)
    assert made["utterances"] == len(read_manifest(tmp_path)) > 0
    rows = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    (first, *_) = [row for row in rows if "is not UTF-8" in row["reason"]]
    assert first["source"].startswith("aihub-scripted/\\xb0\\xa8")
    assert read_json(tmp_path / "quality.json")["rejected"]["by"]["file name"] > 0


def test_a_corpus_whose_tables_names_are_not_utf8_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "S") + "/4차년도.csv".encode("cp949"))).touch()
    with pytest.raises(UsageError, match=r"found 4\\xc2.*not UTF-8: unpack .*-O cp949"):
        load("aihub-dialogue", tmp_path / "S")


def test_a_session_without_its_table_is_rejected_with_its_recordings(tmp_path: Path) -> None:
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
        found = load(kind, root)
        reasons = rejected(found)
        wanted = {path.relative_to(root).as_posix() for path in root.glob("wav/**/*.wav")}
        for item in found:
            if isinstance(item, Utterance):
                wanted.remove(Path(item.audio_path).relative_to(root).as_posix())
        assert len(kept(found)) == 6 and wanted <= reasons.keys() and set(strays) <= wanted
        absent = {name for name, reason in reasons.items() if reason.startswith("no such file")}
        assert {f"annotation/{name}" for name in tables} < absent
        assert "links are not followed" in reasons["wav/door"]


def test_a_table_behind_a_link_out_of_the_corpus_is_refused(tmp_path: Path) -> None:
    whole = kemdy20.make(tmp_path / "A", (1,), segments_per_session=6, glitches=False).root
    (whole / "annotation").rename(tmp_path / "away")
    (whole / "annotation").symlink_to(tmp_path / "away")
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
        load("kemdy20", whole)


def _nfc(path: Path, root: Path) -> str:
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def test_words_of_a_split_column_pass_where_nobody_asks_for_it(tmp_path: Path) -> None:
    words = ["train", "VAL", "eval", "fold3", ""] * 8
    rows = [f"{at}.wav,{word},sad,p{at}" for at, word in enumerate(words)]
    path = own(tmp_path / "own", rows, "audio_path,split,label,speaker")
    found = [item.split for item in load("table", path) if isinstance(item, Utterance)]
    assert found == ["train", "valid", "test", "fold3", None] * 8
    config = CorpusConfig(kind="table", path=str(path))
    made = prepare([config], RANDOM, 1, tmp_path, unpacked=tmp_path, workers=1)
    assert (made["utterances"], made["rejected"]) == (40, 0)
    with pytest.raises(UsageError, match=r"split\.by: column: table/3 says `fold3` where train"):
        prepare([config], SplitConfig(by="column"), 1, tmp_path, unpacked=tmp_path, workers=1)


def test_what_changes_below_a_relative_audio_root_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(tmp_path / "a.wav", 1)
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables/t.csv"
    path.write_text("audio_path,label,speaker\na.wav,sad,kim\n")
    monkeypatch.chdir(tmp_path)
    config = CorpusConfig(kind="table", path="tables/t.csv", audio_root=".")
    assert kept(list(loaders.load(config))) == ["a"]
    before = digest([config])
    write_wav(tmp_path / "a.wav", 2, 800)
    assert digest([config]) != before
