"""The quality report: suspicious recordings, duplicates, raters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from multistill.audio.levels import measure
from multistill.audio.reading import read_sound
from multistill.config import CorpusConfig, SplitConfig
from multistill.corpora.manifest import manifest_schema, read_manifest
from multistill.corpora.prepare import prepare
from multistill.corpora.quality import training
from multistill.workspace import read_json


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> str:
    soundfile.write(path, samples, rate, "PCM_16")
    return path.name


def test_the_report_finds_suspicious_recordings(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)

    def noise(size: int = 20_000) -> np.ndarray:
        return rng.normal(0, 0.1, size).clip(-0.9, 0.9)

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    same, silent, loud = noise(), np.zeros(16_000), np.sign(noise())
    files = [write_wav(corpus / f"plain{i}.wav", noise()) for i in range(6)]
    files += [write_wav(corpus / "silent.wav", silent), write_wav(corpus / "clipped.wav", loud)]
    files += [write_wav(corpus / "same1.wav", same), write_wav(corpus / "same2.wav", same)]
    files += [write_wav(corpus / "slow.wav", noise(), 8_000)]
    files += [write_wav(corpus / "tiny.wav", noise(399))]
    files += [write_wav(corpus / "long.wav", noise(31 * 16_000))]
    files += [write_wav(corpus / "stereo.wav", np.stack([noise(), noise()], axis=1))]
    labels = ["happy", "sad"] * 7
    rows = [f"{f},말 {i // 2},{labels[i]},p{i:02d}" for i, f in enumerate(files)]
    table = corpus / "table.csv"
    table.write_text("\n".join(["audio_path,text,label,speaker", *rows]), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    prepare([CorpusConfig(kind="table", path=str(table))], SplitConfig(), out, unpacked=tmp_path)
    report = read_json(out / "quality.json")
    assert report["utterances"] == 14
    assert report["audio"]["sample_rates"] == {"16000": 13, "8000": 1}
    assert report["audio"]["channels"] == {"1": 13, "2": 1}
    assert report["audio"]["too_short"] == {"count": 1, "examples": ["table/tiny"]}
    assert report["audio"]["too_long"] == {"count": 1, "examples": ["table/long"]}
    assert report["audio"]["other_rate"] == {"count": 1, "examples": ["table/slow"]}
    assert report["signal"]["silent"] == {"count": 1, "examples": ["table/silent"]}
    assert report["signal"]["clipped"] == {"count": 1, "examples": ["table/clipped"]}
    assert (report["signal"]["checked"], report["signal"]["of"]) == (14, 14)
    assert report["signal"]["silent_share"]["median"] == 0
    assert -25 < report["signal"]["level_dbfs"]["median"] < -15
    assert report["duplicates"]["groups"] == 1
    assert report["duplicates"]["examples"] == [["table/same1", "table/same2"]]
    assert report["text"] == {
        "empty": 0,
        "distinct": 7,
        "repeated": 14,
        "encodings": {"utf-8": 14},
        "not_utf8": {},
    }
    assert report["raters"] is None
    assert sum(report["duration"]["histogram"]["counts"]) == 14
    assert sum(sum(part.values()) for part in report["split"]["classes"].values()) == 14


def prepared(folder: Path, files: dict[str, np.ndarray]) -> dict[str, Any]:
    """The quality report of a corpus of these recordings, written as float32."""
    rows = ["audio_path,text,label,speaker"]
    for number, (name, samples) in enumerate(files.items()):
        soundfile.write(folder / f"{name}.wav", samples, 16_000, "FLOAT")
        rows.append(f"{name}.wav,말,{('sad', 'happy')[number % 2]},p{number}")
    (folder / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    corpus = CorpusConfig(kind="table", path=str(folder / "table.csv"))
    prepare([corpus], SplitConfig(), folder, unpacked=folder)
    text = (folder / "quality.json").read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return report


def test_only_files_that_are_equal_in_every_byte_are_duplicates(tmp_path: Path) -> None:
    sound = np.random.default_rng(5).uniform(-0.5, 0.5, 40_000)
    other = sound.copy()
    other[10_000] = 0.9
    files = {"c0": sound, "c1": sound, "c2": other, "c3": sound[::-1]}
    report = prepared(tmp_path, files)["duplicates"]
    assert (report["groups"], report["utterances"]) == (1, 2)
    assert report["examples"] == [["table/c0", "table/c1"]]
    assert report["groups_on_both_sides"] in (0, 1)


def test_what_the_encoders_cannot_use_is_named_and_the_figures_are_those_of_the_others(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(7)
    plain = [rng.normal(0, 0.1, 16_000) for _ in range(6)]
    sound = rng.normal(0, 0.1, 16_000)
    bad = {
        "nan": np.where(np.arange(16_000) == 500, np.nan, sound),
        "inf": np.where(np.arange(16_000) == 15_999, -np.inf, sound),
        "opposite": np.stack([sound, -sound], axis=1),
        "nearly": np.stack([sound, -0.95 * sound], axis=1),
        "three": np.stack([sound, sound, -2 * sound], axis=1),
        "dead": np.stack([sound, np.zeros(16_000)], axis=1),
        "offset": np.stack([sound, np.full(16_000, 0.25)], axis=1),
        "constant": np.full(16_000, 0.5),
        "quiet": sound * 1e-5,
        "huge": sound * 3e38,
    }
    report = prepared(tmp_path, {**{f"p{i}": x for i, x in enumerate(plain)}, **bad})["signal"]

    def named(kind: str) -> list[str]:
        return [case.removeprefix("table/").split(":")[0] for case in report[kind]["examples"]]

    assert named("not_finite") == ["nan", "inf"]
    assert named("cancelled") == ["opposite", "nearly", "three"]
    assert named("silent") == ["opposite", "three", "constant", "quiet"]
    assert named("dead_channel") == ["dead", "offset"]
    assert named("clipped") == ["huge"]
    assert report["undecodable"]["count"] == 0
    assert all(np.isfinite(list(report["level_dbfs"].values())))
    assert -26 < report["level_dbfs"]["median"] < -18


def test_the_level_is_that_of_the_signal_at_16_khz(tmp_path: Path) -> None:
    """A tone above 8 kHz is not encoded, however loud it is in the file."""
    time = np.arange(48_000) / 48_000
    path = tmp_path / "high.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 20_000 * time), 48_000)
    sound = read_sound(str(path), measured=True)
    assert sound.levels is not None
    levels = measure(sound.samples, sound.levels)
    assert levels.level_dbfs < -40
    assert sound.levels.dbfs[0] > -10


@pytest.mark.parametrize("raters", ["", ",rater_a,rater_b"])
def test_tied_labels_without_raters_give_no_agreement(tmp_path: Path, raters: str) -> None:
    rng = np.random.default_rng(6)
    labels = ["sad", "happy;sad", "angry", "happy;fear", "sad", "neutral;sad"]
    rows = [f"audio_path,label,speaker{raters}"]
    for i, label in enumerate(labels):
        write_wav(tmp_path / f"c{i}.wav", rng.normal(0, 0.1, 4000))
        rows.append(f"c{i}.wav,{label},p{i}" + "," * raters.count(","))
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    corpus = CorpusConfig(kind="table", path=str(tmp_path / "table.csv"))
    prepare([corpus], SplitConfig(), tmp_path, unpacked=tmp_path)
    assert read_json(tmp_path / "quality.json")["raters"] is None
    soft = read_manifest(tmp_path)["label_soft"].to_pylist()
    assert soft[1] == [0, 0.5, 0, 0, 0.5, 0, 0]


def test_mean_shares_are_over_the_clips_that_have_a_class() -> None:
    shares = [[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    schema = manifest_schema(("calm", "glad"))
    part = pa.schema([schema.field(name) for name in ("split", "label", "label_soft")])
    columns = {"split": ["train"] * 3, "label": ["calm", None, None], "label_soft": shares}
    table = pa.table(columns, schema=part.with_metadata(schema.metadata))
    votes = pa.array([None, [2], None], pa.list_(pa.int64()))
    found = training(table.append_column("votes", votes))
    assert found["mean_shares"] == {"calm": 0.75, "glad": 0.25}
    assert found["counts"] == {"calm": 1, "glad": 0, "tie": 1}
