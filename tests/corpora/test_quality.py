"""Raters' agreement against brute force, and what the quality report finds in files."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import CorpusConfig, SplitConfig
from multistill.corpora import quality
from multistill.corpora.agreement import (
    distinct,
    krippendorff_alpha,
    leave_one_rater_out,
    vote_entropy,
)
from multistill.corpora.audio import content_digest, plain_wav, read_header, read_signal
from multistill.corpora.manifest import read_manifest
from multistill.corpora.prepare import prepare
from multistill.workspace import read_json

steady = settings(max_examples=60, deadline=None)
votes_table = st.lists(
    st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=1, max_size=12
).map(lambda rows: np.array(rows, dtype=np.int64))


def counted(*parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return distinct(Counter(tuple(row) for part in parts for row in part.tolist()))


def answers(votes: np.ndarray) -> list[list[int]]:
    return [[c for c, n in enumerate(row) for _ in range(n)] for row in votes.tolist()]


@steady
@given(votes_table)
def test_alpha_is_that_of_the_coincidence_matrix(votes: np.ndarray) -> None:
    matrix = np.zeros((7, 7))
    for row in answers(votes):
        for a, b in permutations(row, 2):
            matrix[a, b] += 1 / (len(row) - 1)
    total, each = matrix.sum(), matrix.sum(axis=0)
    off = total**2 - (each**2).sum()
    found = krippendorff_alpha(*counted(votes))
    if not off:
        assert found is None
        return
    differing = matrix.sum() - np.trace(matrix)
    assert found == pytest.approx(1 - (total - 1) * differing / off)


def test_alpha_of_agreement_is_one_and_of_chance_near_zero() -> None:
    agreed = np.zeros((7, 7), np.int64)
    np.fill_diagonal(agreed, 10)
    once = np.ones(7, np.int64)
    assert krippendorff_alpha(agreed, once) == 1.0
    rng = np.random.default_rng(0)
    chance = rng.multinomial(10, [1 / 7] * 7, size=4000)
    assert krippendorff_alpha(*counted(chance)) == pytest.approx(0, abs=0.01)
    assert krippendorff_alpha(agreed[:1], once[:1]) is None
    assert krippendorff_alpha(agreed // 10, once) is None  # one answer each: none to compare


@steady
@given(votes_table)
def test_leaving_one_rater_out_is_that_of_asking_each_in_turn(votes: np.ndarray) -> None:
    pairs, asked = [], 0
    for row in answers(votes):
        if len(row) < 2:
            continue
        for at, own in enumerate(row):
            asked += 1
            rest = np.bincount(row[:at] + row[at + 1 :], minlength=7)
            if (rest == rest.max()).sum() == 1:
                pairs.append((int(rest.argmax()), own))
    half = len(votes) // 2
    found = leave_one_rater_out(*counted(votes[:half], votes[half:]))
    if not pairs:
        assert found is None
        return
    assert found is not None
    truth, own = np.array(pairs).T
    assert found.answers == len(pairs)
    assert found.accuracy == pytest.approx((truth == own).mean())
    assert found.uar == pytest.approx(
        np.mean([(own[truth == c] == c).mean() for c in set(truth.tolist())])
    )
    assert found.undecided == pytest.approx(1 - len(pairs) / asked)


def test_vote_entropy_runs_from_none_to_all_classes_alike() -> None:
    found = vote_entropy(np.array([[10, 0, 0, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0, 0], [1] * 7]))
    assert found == pytest.approx([0, 1, math.log2(7)])
    assert not np.signbit(found[0])


SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_headers_say_what_libsndfile_says(tmp_path: Path, subtype: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    for channels, frames, rate in ((1, 16_001, 16_000), (2, 333, 44_100), (1, 1, 8_000)):
        path = tmp_path / f"{channels}.wav"
        soundfile.write(path, rng.uniform(-1, 1, (frames, channels)), rate, subtype, format=kind)
        header, info = read_header(path), soundfile.info(path)
        assert not isinstance(header, str)
        assert header[:3] == (info.frames, info.samplerate, info.channels)
        assert header.encoding == f"{info.format} {info.subtype}"


@steady
@given(st.integers(0, 3000), st.integers(1, 900))
def test_a_cut_wav_is_never_believed_beyond_its_end(cut: int, frames: int) -> None:
    import io

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(frames, np.float32), 16_000, "PCM_16", format="WAV")
    data = stream.getvalue()[: max(1, len(stream.getvalue()) - cut)]
    told = plain_wav(data, len(data))
    if isinstance(told, str):
        assert cut > 0
        assert "cut short" in told
    elif told is not None:
        assert cut == 0
        assert told[0] == frames


def test_other_formats_and_broken_files_get_a_header_or_a_reason(tmp_path: Path) -> None:
    sound = np.random.default_rng(2).uniform(-0.5, 0.5, 16_000)
    for ending in ("flac", "ogg"):
        soundfile.write(tmp_path / f"a.{ending}", sound, 16_000)
        header = read_header(tmp_path / f"a.{ending}")
        assert not isinstance(header, str)
        assert header.num_samples == 16_000
    cases = {"empty": b"", "text": b"not audio at all", "head": b"RIFF\x00\x00\x00\x00WAVE"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    assert read_header(tmp_path / "empty") == "is empty (0 bytes)"
    assert "no audio" in str(read_header(tmp_path / "text"))
    assert isinstance(read_header(tmp_path / "head"), str)
    assert "No such file" in str(read_header(tmp_path / "absent"))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    assert read_header(tmp_path / "none.wav") == "holds no samples"
    assert read_signal(tmp_path / "text") is None


def test_the_sampled_digest_follows_the_content(tmp_path: Path) -> None:
    def digest(data: bytes, name: str = "x") -> str:
        (tmp_path / name).write_bytes(data)
        header = read_header(tmp_path / name)
        assert not isinstance(header, str)
        return header.digest

    soundfile.write(tmp_path / "a.wav", np.random.default_rng(3).uniform(-1, 1, 40_000), 16_000)
    data = (tmp_path / "a.wav").read_bytes()
    first = digest(data)
    assert digest(data, "copy") == first
    for at in (2000, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        assert digest(bytes(changed)) != first
    assert digest(data + b"\0") != first
    assert content_digest(tmp_path / "copy") != content_digest(tmp_path / "x")


def write(path: Path, samples: np.ndarray, rate: int = 16_000) -> str:
    soundfile.write(path, samples, rate, "PCM_16")
    return path.name


def test_the_report_finds_what_is_wrong_with_the_recordings(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)

    def noise(size: int = 20_000) -> np.ndarray:
        return rng.normal(0, 0.1, size).clip(-0.9, 0.9)

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    same, silent, loud = noise(), np.zeros(16_000), np.sign(noise())
    files = [write(corpus / f"plain{at}.wav", noise()) for at in range(6)]
    files += [write(corpus / "silent.wav", silent), write(corpus / "clipped.wav", loud)]
    files += [write(corpus / "same1.wav", same), write(corpus / "same2.wav", same)]
    files += [write(corpus / "slow.wav", noise(), 8_000), write(corpus / "tiny.wav", noise(399))]
    files += [write(corpus / "long.wav", noise(31 * 16_000))]
    files += [write(corpus / "stereo.wav", np.stack([noise(), noise()], axis=1))]
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
    assert report["text"] == {"empty": 0, "distinct": 7, "repeated": 14, "encodings": {"utf-8": 14}}
    assert report["raters"] is None
    assert sum(report["duration"]["histogram"]["counts"]) == 14
    assert sum(sum(part.values()) for part in report["split"]["classes"].values()) == 14


def test_recordings_that_differ_only_between_the_sampled_parts_are_told_from_copies(
    tmp_path: Path,
) -> None:
    sound = np.random.default_rng(5).uniform(-0.5, 0.5, 40_000)
    other = sound.copy()
    other[10_000] = 0.9
    for at, samples in enumerate((sound, sound, other, sound[::-1])):
        soundfile.write(tmp_path / f"c{at}.wav", samples, 16_000, "PCM_16")
    rows = [f"c{at}.wav,말,sad,p{at}" for at in range(4)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["audio_path,text,label,speaker", *rows]), encoding="utf-8")
    corpus = CorpusConfig(kind="table", path=str(table))
    prepare([corpus], SplitConfig(), 1, tmp_path, unpacked=tmp_path)
    found = read_json(tmp_path / "quality.json")["duplicates"]
    assert (found["groups"], found["utterances"], found["compared_whole"]) == (1, 2, 3)
    assert (found["only_alike"], found["not_compared"]) == (1, 0)
    assert found["examples"] == [["table/c0", "table/c1"]]


def test_alike_recordings_that_differ_are_no_duplicates_and_the_unread_are_counted_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "COMPARED", 1)
    content = {**{f"{at}": "same" for at in range(11)}, "x": "one", "y": "two"}
    monkeypatch.setattr(quality, "map_files", lambda _, paths, __: [content[p] for p in paths])
    names = [*"xy", *map(str, range(11))]
    rows = pa.table(
        {
            "utterance_id": names,
            "audio_path": names,
            "audio_digest": ["alike"] * 2 + ["many"] * 11,
            "split": ["train", "test"] + ["train"] * 11,
        }
    )
    found = quality.duplicates(rows, 1)
    assert found["groups"] == found["utterances"] == found["groups_on_both_sides"] == 0
    assert (found["compared_whole"], found["only_alike"], found["not_compared"]) == (2, 1, 1)


@pytest.mark.parametrize("raters", ["", ",rater_a,rater_b"])
def test_ties_among_plain_labels_are_no_raters(tmp_path: Path, raters: str) -> None:
    rng = np.random.default_rng(6)
    labels = ["sad", "happy;sad", "angry", "happy;fear", "sad", "neutral;sad"]
    rows = [f"audio_path,label,speaker{raters}"]
    for at, label in enumerate(labels):
        write(tmp_path / f"c{at}.wav", rng.normal(0, 0.1, 4000))
        rows.append(f"c{at}.wav,{label},p{at}" + "," * raters.count(","))
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    corpus = CorpusConfig(kind="table", path=str(tmp_path / "table.csv"))
    prepare([corpus], SplitConfig(), 1, tmp_path, unpacked=tmp_path)
    assert read_json(tmp_path / "quality.json")["raters"] is None
    soft = read_manifest(tmp_path)["label_soft"].to_pylist()
    assert soft[1] == [0, 0.5, 0, 0, 0.5, 0, 0]
