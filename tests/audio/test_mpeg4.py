"""Sound in MPEG-4 files, where the package av is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import read_blocks, read_sound

av = pytest.importorskip("av")


def write(path: Path, rate: int = 44_100, layout: str = "stereo", seconds: float = 2.0) -> None:
    """A tone of 200 Hz as AAC, with what describes it before the sound."""
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(round(seconds * rate)) / rate)
    with av.open(str(path), "w", format="ipod", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("aac", rate=rate, layout=layout)
        samples = np.tile(tone.astype(np.float32), (len(stream.codec_context.layout.channels), 1))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)


@pytest.mark.parametrize(
    ("rate", "layout"), [(44_100, "stereo"), (16_000, "mono"), (48_000, "5.1")]
)
def test_sound_is_decoded(rate: int, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    write(path, rate, layout)
    sound = read_sound(str(path))
    assert sound.header.rate == rate and sound.header.encoding == "MPEG-4 AAC"
    delay = 1024 * 16_000 / rate  # of the encoder
    assert len(sound.samples) == pytest.approx(32_000, abs=1.1 * delay)
    spectrum = np.abs(np.fft.rfft(sound.samples[4_000:20_000]))
    assert spectrum.argmax() == 200 and np.abs(sound.samples).max() == pytest.approx(0.3, abs=0.1)
    np.testing.assert_allclose(np.concatenate(list(read_blocks(str(path)))), sound.samples)
    assert read_sound(str(path), max_seconds=1.0).cut
    np.testing.assert_array_equal(read_sound(path.read_bytes()).samples, sound.samples)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.9])
def test_what_is_cut_is_one_sentence(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    write(path)
    content = path.read_bytes()
    with pytest.raises(UnusableClipError, match=r"truncated|cannot be decoded|not "):
        read_sound(content[: max(12, int(share * len(content)))])


def test_damage_ends_with_a_sentence_or_with_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    write(path, seconds=0.5)
    random = np.random.default_rng(0)
    for _ in range(200):
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        places = random.integers(12, len(content), 20)
        content[places] = random.integers(0, 256, len(places))
        try:
            assert np.isfinite(read_sound(content.tobytes()).samples).all()
        except UnusableClipError as error:
            assert "\n" not in str(error)
