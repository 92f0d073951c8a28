"""Audio headers compared with those of libsndfile, and content digests."""

from __future__ import annotations

import io
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.generators.parts import write_wav
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.corpora import audio_headers as audio
from multistill.corpora.audio_headers import (
    HeaderReader,
    content_digest,
    parse_wav,
    read_header,
    read_signal,
)

SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_wav_headers_equal_those_of_libsndfile(tmp_path: Path, subtype: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    for channels, frames, rate in ((1, 16_001, 16_000), (2, 333, 44_100), (1, 1, 8_000)):
        path = tmp_path / f"{channels}.wav"
        soundfile.write(path, rng.uniform(-1, 1, (frames, channels)), rate, subtype, format=kind)
        header, info = read_header(path), soundfile.info(path)
        assert not isinstance(header, str)
        assert header[:3] == (info.frames, info.samplerate, info.channels)
        assert header.encoding == f"{info.format} {info.subtype}"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 900))
def test_a_truncated_wav_never_gives_a_header(cut: int, frames: int) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(frames, np.float32), 16_000, "PCM_16", format="WAV")
    data = stream.getvalue()[: max(1, len(stream.getvalue()) - cut)]
    fields = parse_wav(data, len(data))
    if isinstance(fields, str):
        assert cut > 0
        assert "is truncated" in fields
    elif fields is not None:
        assert cut == 0
        assert fields[0] == frames


def test_other_formats_and_broken_files_get_a_header_or_a_reason(tmp_path: Path) -> None:
    sound = np.random.default_rng(2).uniform(-0.5, 0.5, 16_000)
    for suffix in ("flac", "ogg"):
        soundfile.write(tmp_path / f"a.{suffix}", sound, 16_000)
        header = read_header(tmp_path / f"a.{suffix}")
        assert not isinstance(header, str)
        assert header.num_samples == 16_000
    cases = {"empty": b"", "text": b"not audio at all", "head": b"RIFF\x00\x00\x00\x00WAVE"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    assert read_header(tmp_path / "empty") == "is empty (0 bytes)"
    assert "is not audio" in str(read_header(tmp_path / "text"))
    assert isinstance(read_header(tmp_path / "head"), str)
    assert "No such file" in str(read_header(tmp_path / "absent"))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    assert read_header(tmp_path / "none.wav") == "has no samples"
    assert read_signal(tmp_path / "text") is None


def test_headers_are_the_same_and_in_order_if_threads_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / f"{number}.wav") for number in range(40)]
    for number, path in enumerate(paths):
        write_wav(Path(path), number, 640 + number)
    paths[20] = str(tmp_path / "absent.wav")
    expected = [read_header(path) for path in paths]
    assert [i for i, header in enumerate(expected) if isinstance(header, str)] == [20]
    monkeypatch.setattr(audio, "SLOW", 0.0)
    threads: set[int] = set()

    def recorded(path: str) -> audio.Header | str:
        threads.add(threading.get_ident())
        time.sleep(0.001)
        return read_header(path)

    monkeypatch.setattr(audio, "read_header", recorded)
    reader = HeaderReader()
    assert reader.read(paths) == expected
    assert threads == {threading.get_ident()}
    assert reader.read(paths) == expected
    assert len(threads) > 2


def test_the_sampled_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    def digest(data: bytes, name: str = "x") -> str:
        (tmp_path / name).write_bytes(data)
        header = read_header(tmp_path / name)
        assert not isinstance(header, str)
        return header.digest

    soundfile.write(tmp_path / "a.wav", np.random.default_rng(3).uniform(-1, 1, 40_000), 16_000)
    data = (tmp_path / "a.wav").read_bytes()
    first = digest(data)
    assert digest(data, "copy") == first
    for offset in (2000, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[offset] ^= 1
        assert digest(bytes(changed)) != first
    assert digest(data + b"\0") != first
    assert content_digest(tmp_path / "copy") != content_digest(tmp_path / "x")


@pytest.mark.parametrize(("rate", "channels"), [(4_000_000_000, 1), (16_000, 40_000)])
def test_an_implausible_header_is_refused(tmp_path: Path, rate: int, channels: int) -> None:
    write_wav(tmp_path / "a.wav", 1, 80_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[22:28] = struct.pack("<HI", channels, rate)
    data[32:36] = struct.pack("<HH", channels, 8)
    (tmp_path / "a.wav").write_bytes(data)
    assert "has an invalid header" in str(read_header(str(tmp_path / "a.wav")))
