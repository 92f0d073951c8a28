"""Distorted copies of recordings: what is drawn, and that each distortion is the one asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from multistill.audio import SAMPLE_RATE
from multistill.audio.augmentation import augment_wave, faster, sounds_in
from multistill.config import CopiesConfig

OFF = {"speed": 0, "reverberation": 0, "noise": 0, "gain": 0, "codec": 0}


def only(**settings: Any) -> CopiesConfig:
    return CopiesConfig.model_validate({**OFF, **settings})


def tone(hertz: float = 440.0, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def snr_of(noisy: np.ndarray, clean: np.ndarray) -> float:
    return float(10 * np.log10(clean.var() / np.mean((noisy - clean) ** 2)))


@given(st.floats(0.7, 1.4))
def test_speed_changes_length_and_pitch_alike(factor: float) -> None:
    changed = faster(tone(440), factor)
    assert len(changed) == pytest.approx(SAMPLE_RATE / factor, abs=2)
    middle = changed[1000:-1000] * np.hanning(len(changed) - 2000)
    peak = np.abs(np.fft.rfft(middle, 1 << 17)).argmax() * SAMPLE_RATE / (1 << 17)
    assert peak == pytest.approx(440 * factor, rel=2e-3)


def test_copies_are_the_clip_where_nothing_is_drawn_and_repeat_with_their_seed() -> None:
    clean = tone()
    np.testing.assert_array_equal(augment_wave(clean, only(), np.random.default_rng(0)), clean)
    every = only(speed=1, reverberation=1, noise=1, gain=1, codec=1)
    once, again, other = (
        augment_wave(clean, every, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once, again)
    assert len(once) != len(other)
    assert once.dtype == np.float32 and np.isfinite(once).all()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_a_distortion_has_its_probability(probability: float) -> None:
    clean = tone(seconds=0.05)
    settings = only(noise=probability)
    random = np.random.default_rng(0)
    changed = [not np.array_equal(augment_wave(clean, settings, random), clean) for _ in range(400)]
    assert np.mean(changed) == pytest.approx(probability, abs=0.06)


@pytest.mark.parametrize("kind", ["white", "pink", "babble", "recorded"])
def test_noise_of_every_kind_has_a_ratio_within_the_range(kind: str) -> None:
    clean = tone()
    voices = [tone(200, 0.3), tone(900, 3.0)]
    settings = only(
        noise=1, noise_db=[5, 15], noise_kinds=["white" if kind == "recorded" else kind]
    )
    recorded = [tone(1500, 0.2)] if kind == "recorded" else []
    found = []
    for seed in range(20):
        noisy = augment_wave(
            clean, settings, np.random.default_rng(seed), noises=recorded, voices=voices
        )
        found.append(snr_of(noisy, clean))
        spectrum = np.abs(np.fft.rfft(noisy - clean)) ** 2
        if kind == "recorded":
            assert spectrum[1490:1511].sum() > 0.9 * spectrum.sum()
        if kind == "pink":  # equal power in every octave
            octaves = [spectrum[low : 2 * low].sum() for low in (250, 500, 1000, 2000)]
            assert max(octaves) < 2 * min(octaves)
    assert 5 <= min(found) < 8 and 12 < max(found) <= 15.01


def test_a_recorded_room_keeps_the_clip_in_time_and_at_its_level() -> None:
    response = np.zeros(4000, np.float32)
    response[[1000, 3000]] = 1.0, 0.25  # 62 ms of silence before the direct sound
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[5000] = 1.0
    wet = augment_wave(click, only(reverberation=1), np.random.default_rng(0), rooms=[response])
    assert np.flatnonzero(np.abs(wet) > 0.1).tolist() == [5000, 7000]
    assert wet.var() == pytest.approx(click.var(), rel=1e-3)


def test_a_level_beyond_full_scale_is_cut() -> None:
    loud = augment_wave(tone(), only(gain=1, gain_db=[20, 20]), np.random.default_rng(0))
    assert np.abs(loud).max() == 1.0
    assert np.mean(np.abs(loud) == 1.0) > 0.5


def test_sounds_are_the_audio_files_below_a_folder_in_the_order_of_their_names(
    tmp_path: Path,
) -> None:
    for name, hertz in (("b/x.wav", 300), ("a.flac", 600), (".hidden.wav", 900)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, tone(hertz, 0.1), SAMPLE_RATE)
    (tmp_path / "notes.txt").write_text("no sound")
    sounds = sounds_in(str(tmp_path))
    assert [Path(path).name for path in sounds.paths] == ["a.flac", "x.wav"]
    np.testing.assert_allclose(sounds[1], tone(300, 0.1), atol=1e-4)
