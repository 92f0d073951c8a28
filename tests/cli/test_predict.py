"""`multistill predict`: which clips it finds, what it writes, how it ends."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.predictor_case import LABELS, save_predictor, speech_like

from multistill import Predictor
from multistill.cli.app import main
from multistill.errors import UsageError
from multistill.full_disk import FullDiskError
from multistill.inference.rows import FORMATS, writer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and three recordings, one of them in a folder below and none of them broken."""
    folder = tmp_path_factory.mktemp("predict")
    save_predictor(folder / "model")
    (folder / "clips" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.wav", "b.FLAC", "more/c.wav")):
        path = folder / "clips" / name
        soundfile.write(path, speech_like(1.0 + number / 4, seed=number), 16_000)
    (folder / "clips" / "notes.txt").write_text("no recording")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_one_clip_is_shown_with_its_classes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "clips" / "a.wav"
    found = Predictor.load(home / "model").predict(path)
    code, out, _ = run(capsys, home / "model", "--audio", path)
    assert code == 0 and out.startswith(f"{path}: {found.label}\n")
    assert all(label in out for label in LABELS) and "without text" in out
    code, out, _ = run(capsys, home / "model", "--audio", path, "--json")
    assert json.loads(out)["distribution"] == pytest.approx(found.distribution)
    code, out, _ = run(capsys, home / "model", "--audio", path, "--unsure-below", "0.999")
    assert code == 0 and out.startswith(f"{path}: unsure\n")


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (["clips"], ["a.wav", "b.FLAC", "more/c.wav"]),
        (["clips/*.wav"], ["a.wav"]),
        (["clips/**/*.wav"], ["a.wav", "more/c.wav"]),
        (["clips/b.FLAC", "clips/a.wav"], ["b.FLAC", "a.wav"]),
    ],
)
def test_recordings_of_a_folder_or_a_pattern(
    home: Path, named: list[str], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option for name in named for option in ("--audio", home / name)]
    code, out, _ = run(capsys, home / "model", *options, "--json")
    ids = [row["id"] for row in map(json.loads, out.splitlines())] if len(wanted) > 1 else [
        json.loads(out)["id"]
    ]  # fmt: skip
    assert code == 0 and ids == [str(home / "clips" / name) for name in wanted]


TABLE = [
    {"id": "one", "audio": "clips/a.wav", "text": "hello"},
    {"id": "two", "audio": "clips/more/c.wav", "text": ""},
    {"id": "three", "audio": "", "text": "only words"},
    {"id": "four", "audio": "clips/none.wav", "text": "hello"},
]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("out", ["o.jsonl", "o.csv", "o.parquet"])
def test_a_table_becomes_a_table_and_its_failures_rows(
    home: Path, tmp_path: Path, ending: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = home / f"table{ending}"
    if ending == ".csv":
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(TABLE[0]))
            writer.writeheader()
            writer.writerows(TABLE)
    else:
        pq.write_table(pa.Table.from_pylist(TABLE), table)
    code, printed, err = run(capsys, home / "model", "--audio", table, "--out", tmp_path / out)
    assert code == 1 and not printed and "1 of 4 clips could not be predicted" in err
    rows = read(tmp_path / out)
    assert [row["id"] for row in rows] == ["one", "two", "three", "four"]
    assert [bool(row.get("error")) for row in rows] == [False, False, False, True]
    predictor = Predictor.load(home / "model")
    for row, given in zip(rows[:3], TABLE, strict=False):
        audio = home / given["audio"] if given["audio"] else None
        wanted = predictor.predict(audio, given["text"])
        shares = row.get("distribution")
        for label, share in wanted.distribution.items():
            value = shares[label] if shares else float(row[f"p_{label}"])
            assert value == pytest.approx(share, abs=1e-5)
        assert row["label"] == wanted.label


def read(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            return list(csv.DictReader(stream))
    return pq.read_table(path).to_pylist()


def test_a_file_that_is_written_appears_only_complete(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier result stays where a run is interrupted, and no partial file is left."""
    out = tmp_path / "o.csv"
    out.write_text("before")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "try_batch", interrupt)
    with pytest.raises(SystemExit) as end:
        main(["predict", str(home / "model"), "--audio", str(home / "clips"), "--out", str(out)])
    assert end.value.code == 130
    assert out.read_text() == "before" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_name_that_is_no_utf8_costs_nothing(
    home: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    name = os.fsdecode(b"\xb0\xa8.wav")
    soundfile.write(str(folder / "a.wav"), speech_like(1.0), 16_000)
    (folder / "a.wav").rename(folder / name)
    (folder / os.fsdecode(b"\xb1.wav")).write_bytes(b"no sound")
    out = tmp_path / f"found{ending}"
    code, _, err = run(capsys, home / "model", "--audio", folder, "--out", out)
    assert code == 1 and "1 of 2 clips" in err
    assert b"\\xb0" in out.read_bytes()


def test_an_empty_name_is_not_the_current_folder(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, home / "model", "--audio", "")
    assert code == 2 and "--audio is empty" in err


def test_errors_of_the_work_are_not_those_of_the_file_that_is_written(tmp_path: Path) -> None:
    for number, kind in ((errno.EACCES, PermissionError), (errno.ENOSPC, FullDiskError)):
        with pytest.raises(kind), writer(tmp_path / "found.csv", LABELS, ()):
            raise OSError(number, os.strerror(number))
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="cannot be written"),
        writer(tmp_path / "file" / "found.csv", LABELS, ()),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_limit_of_a_server_is_a_number(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--timeout", "inf"), ("--max-seconds", "inf")):
        with pytest.raises(SystemExit) as end:
            main(["serve", str(home / "model"), option, value])
        assert end.value.code == 2 and f"{option}: {value}" in capsys.readouterr().err
