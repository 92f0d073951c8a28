"""The quality report: suspicious recordings, duplicates, raters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from multistill.config import CorpusConfig, SplitConfig
from multistill.corpora import quality
from multistill.corpora.manifest import read_manifest
from multistill.corpora.prepare import prepare
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
    prepare([CorpusConfig(kind="table", path=str(table))], SplitConfig(), 1, out, unpacked=tmp_path)
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


def test_files_that_differ_outside_the_sampled_bytes_are_no_duplicates(
    tmp_path: Path,
) -> None:
    sound = np.random.default_rng(5).uniform(-0.5, 0.5, 40_000)
    other = sound.copy()
    other[10_000] = 0.9
    for i, samples in enumerate((sound, sound, other, sound[::-1])):
        soundfile.write(tmp_path / f"c{i}.wav", samples, 16_000, "PCM_16")
    rows = [f"c{i}.wav,말,sad,p{i}" for i in range(4)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["audio_path,text,label,speaker", *rows]), encoding="utf-8")
    corpus = CorpusConfig(kind="table", path=str(table))
    prepare([corpus], SplitConfig(), 1, tmp_path, unpacked=tmp_path)
    report = read_json(tmp_path / "quality.json")["duplicates"]
    assert (report["groups"], report["utterances"], report["compared_whole"]) == (1, 2, 3)
    assert (report["only_alike"], report["not_compared"]) == (1, 0)
    assert report["examples"] == [["table/c0", "table/c1"]]


def test_groups_beyond_the_limit_are_not_read_and_counted_separately(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "COMPARED_GROUPS", 1)
    content = {**{f"{i}": "same" for i in range(11)}, "x": "one", "y": "two"}
    monkeypatch.setattr(quality, "content_digest", content.__getitem__)
    names = [*"xy", *map(str, range(11))]
    rows = pa.table(
        {
            "utterance_id": names,
            "audio_path": names,
            "audio_digest": ["alike"] * 2 + ["many"] * 11,
            "split": ["train", "test"] + ["train"] * 11,
        }
    )
    report = quality.duplicates(rows)
    assert report["groups"] == report["utterances"] == report["groups_on_both_sides"] == 0
    assert (report["compared_whole"], report["only_alike"], report["not_compared"]) == (2, 1, 1)


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
    prepare([corpus], SplitConfig(), 1, tmp_path, unpacked=tmp_path)
    assert read_json(tmp_path / "quality.json")["raters"] is None
    soft = read_manifest(tmp_path)["label_soft"].to_pylist()
    assert soft[1] == [0, 0.5, 0, 0, 0.5, 0, 0]
