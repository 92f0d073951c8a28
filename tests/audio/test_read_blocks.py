"""A file block by block: the samples of the whole file, and its errors after what came before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.recordings import RATE, STATED, encoded, noise, wav

from multistill.audio import reading
from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import read_blocks, read_sound

SECONDS = 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK", RATE)


@pytest.mark.parametrize(("container", "codec"), [*STATED[:6], *STATED[-5:]])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2), (8_000, 1)])
def test_blocks_are_the_samples_of_the_file(
    tmp_path: Path, container: str, codec: str, rate: int, channels: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(tmp_path, container, codec, noise(SECONDS * rate, channels), rate))
    blocks = list(read_blocks(str(path)))
    assert len(blocks) > SECONDS - 1 and max(map(len, blocks)) <= 2 * RATE
    np.testing.assert_array_equal(np.concatenate(blocks), read_sound(str(path)).samples)


def test_longer_than_any_clip_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_SECONDS", 1.0)
    path = tmp_path / "a.wav"
    path.write_bytes(wav(noise(SECONDS * RATE)))
    assert len(read_sound(str(path)).samples) == RATE
    assert sum(map(len, read_blocks(str(path)))) == SECONDS * RATE


def test_what_is_wrong_further_on_comes_after_what_is_right(tmp_path: Path) -> None:
    sound = noise(SECONDS * RATE)
    sound[2 * RATE + 5] = np.nan
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tmp_path, "WAV", "FLOAT", sound))
    blocks = []
    with pytest.raises(UnusableClipError, match="not finite"):
        for block in read_blocks(str(path)):
            blocks.append(block)
    np.testing.assert_array_equal(np.concatenate(blocks), sound[: 2 * RATE].astype(np.float32))


@pytest.mark.parametrize(("rate", "channels"), [(3 * RATE, 1), (RATE, 2)])
def test_samples_that_overflow_are_refused_as_in_a_whole_file(
    tmp_path: Path, rate: int, channels: int
) -> None:
    path = tmp_path / "a.wav"
    loud = np.sign(noise(rate, channels)) * np.finfo(np.float32).max
    path.write_bytes(encoded(tmp_path, "WAV", "FLOAT", loud, rate))
    for read in (read_sound, lambda path: list(read_blocks(path))):
        with pytest.raises(UnusableClipError, match="not finite: its samples are too large"):
            read(str(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "0 bytes"), (b"hello", "not audio"), (wav(noise(0)), "no samples")],
)
def test_no_recording(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(UnusableClipError, match=reason):
        list(read_blocks(str(path)))
