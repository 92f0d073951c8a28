"""Files about which libsndfile writes to standard output, where the commands' results are."""

from __future__ import annotations

import ctypes
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.recordings import RATE, encoded, noise

from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import read_sound


def changed(data: bytes, start: int, end: int, seed: int) -> bytes:
    """One to four bytes within these are others."""
    random = np.random.default_rng(seed)
    found = bytearray(data)
    for at in random.integers(start, end, random.integers(1, 5)):
        found[at] = int(random.integers(128, 256))
    return bytes(found)


def written_by_libsndfile(data: bytes, path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    path.write_bytes(data)
    with suppress(soundfile.LibsndfileError):
        soundfile.read(path)
    return printed(capfd)


def printed(capfd: pytest.CaptureFixture[str]) -> str:
    ctypes.CDLL(None).fflush(None)
    return capfd.readouterr().out


def test_a_midi_sample_dump_is_refused_before_it_is_decoded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(tmp_path, "SDS", "PCM_16", noise(RATE // 10))
    damaged = data[:21] + b"\x11" + data[22:]  # the beginning of the first block
    assert "Error A : 11" in written_by_libsndfile(damaged, tmp_path / "clip", capfd)
    for content in (data, damaged, b"ID3\4\0\0\0\0\0\0" + data):
        with pytest.raises(UnusableClipError, match=r"^not supported: a MIDI Sample Dump \(SDS\)"):
            read_sound(content)
    assert printed(capfd) == ""


def test_a_damaged_table_of_packets_is_refused_before_it_is_decoded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(tmp_path, "CAF", "ALAC_16", noise(8 * 4096))
    at = data.index(b"pakt")
    [length] = struct.unpack(">q", data[at + 4 : at + 12])
    table, end = at + 12 + 24, at + 12 + length
    assert end - table > 12 and len(read_sound(data).samples) == 8 * 4096
    refused = 0
    for seed in range(200):
        content = changed(data, table, end, seed)
        try:
            assert np.isfinite(read_sound(content).samples).all()
        except UnusableClipError as error:
            refused += "its table of packets is damaged" in str(error)
        assert printed(capfd) == "", seed
    assert 0 < refused < 200
    content = data[:table] + b"\xff" * (end - table) + data[end:]
    assert "Ooops" in written_by_libsndfile(content, tmp_path / "clip", capfd)
    for stated in (0, 23, 2**40, 2**62, -1):  # of the table, of which no byte is read then
        content = data[: at + 4] + struct.pack(">q", stated) + data[at + 12 :]
        with pytest.raises(UnusableClipError):
            read_sound(content)
    assert printed(capfd) == ""
