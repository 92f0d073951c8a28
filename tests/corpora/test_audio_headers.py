"""Audio headers compared with those of libsndfile, and reasons for files without one."""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.generators.parts import write_wav

from multistill.audio.digests import Digests
from multistill.corpora import audio_headers as audio
from multistill.corpora.audio_headers import Header, HeaderReader


def read_header(path: Path | str) -> Header | str:
    return audio.read_header(str(path), Digests())


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
    assert read_header(tmp_path / "empty") == "empty: 0 bytes"
    assert "not audio" in str(read_header(tmp_path / "text"))
    assert isinstance(read_header(tmp_path / "head"), str)
    assert "No such file" in str(read_header(tmp_path / "absent"))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    assert read_header(tmp_path / "none.wav") == "empty: no samples"
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in str(read_header(tmp_path / "pipe.wav"))
    assert "not a regular file" in str(read_header(tmp_path))


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

    unwatched = audio.read_header

    def recorded(path: str, digests: Digests) -> Header | str:
        threads.add(threading.get_ident())
        time.sleep(0.001)
        return unwatched(path, digests)

    monkeypatch.setattr(audio, "read_header", recorded)
    reader = HeaderReader()
    assert reader.read(paths) == expected
    assert threads == {threading.get_ident()}
    assert reader.read(paths) == expected
    assert len(threads) > 2


@pytest.mark.parametrize(("rate", "channels"), [(4_000_000_000, 1), (16_000, 40_000)])
def test_an_implausible_header_is_refused(tmp_path: Path, rate: int, channels: int) -> None:
    write_wav(tmp_path / "a.wav", 1, 80_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[22:28] = struct.pack("<HI", channels, rate)
    data[32:36] = struct.pack("<HH", channels, 8)
    (tmp_path / "a.wav").write_bytes(data)
    assert "invalid header" in str(read_header(str(tmp_path / "a.wav")))
