"""Distortions do what their formulae say: ratios, bands, decay, levels, lengths, word errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.audio import SAMPLE_RATE, distortions
from multistill.audio.conditions import CONDITIONS
from multistill.audio.distortions import generator_for


def speech(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Noise with a slow envelope, off zero: the level varies as that of speech does."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    envelope = 0.05 + np.abs(np.sin(2 * np.pi * 1.3 * time))
    return (0.02 + 0.1 * envelope * random.standard_normal(len(time))).astype(np.float32)


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


@pytest.mark.parametrize("kind", ["white", "babble"])
@settings(max_examples=20, deadline=None)
@given(snr=st.floats(-5, 40), seed=st.integers(0, 1000))
def test_noise_has_the_ratio_that_was_asked_for(kind: str, snr: float, seed: int) -> None:
    clean, random = speech(1.0, seed), np.random.default_rng(seed)
    if kind == "white":
        noisy = distortions.white_noise(clean, snr, random)
    else:
        voices = [speech(0.4, 5), speech(3.0, 6), np.zeros(100, np.float32)]
        noisy = distortions.babble(clean, voices, snr, random)
    noise = noisy.astype(float) - clean
    assert decibels(clean.var() / np.mean(noise**2)) == pytest.approx(snr, abs=0.05)


def test_voices_of_babble_are_equally_loud() -> None:
    """A voice that is 40 dB softer than another is heard as well."""
    loud, soft = tone(400), 0.01 * tone(1200)
    noisy = distortions.babble(speech(), [loud, soft], 0.0, np.random.default_rng(0))
    noise = noisy - speech()
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    seconds = len(noise) / SAMPLE_RATE
    at = [
        spectrum[round(hertz * seconds) - 3 : round(hertz * seconds) + 4].sum()
        for hertz in (400, 1200)
    ]
    assert decibels(at[0] / at[1]) == pytest.approx(0, abs=1.0)


def test_silence_stays_silent() -> None:
    silence = np.zeros(8_000, np.float32)
    for condition in CONDITIONS.values():
        if condition.change is not None:
            found = condition.change(silence, [speech()], generator_for("x", "y"))
            assert np.abs(found).max() < 1e-3, condition.name


def test_a_telephone_keeps_its_band() -> None:
    def kept(hertz: float) -> float:
        inside = slice(2_000, -2_000)  # without the filters' transients
        before, after = tone(hertz), distortions.telephone(tone(hertz))
        return decibels(after[inside].var() / before[inside].var())

    assert all(abs(kept(hertz)) < 1 for hertz in (500, 1_000, 2_500, 3_000))
    assert all(kept(hertz) < -20 for hertz in (60, 120, 3_950, 5_000, 7_000))


@given(st.floats(0.001, 1.0))
def test_mu_law_errs_by_a_share_of_the_value(value: float) -> None:
    """255 steps over 5.5 nepers: 2.2 % of (value + 1 / 255) between steps, half of it at most."""
    samples = np.array([value, -value], np.float32)
    found = distortions.mu_law(samples)
    assert np.abs(found - samples).max() <= 0.0225 * (value + 1 / 255)
    assert found[0] == pytest.approx(-found[1], abs=0.0225 * (value + 1 / 255))


def test_a_quiet_recording_is_twenty_decibels_down_on_sixteen_bits() -> None:
    found = distortions.quieter(speech())
    assert decibels(found.var() / speech().var()) == pytest.approx(-20, abs=0.05)
    assert np.array_equal(found * 32768, np.round(found * 32768))


def test_clipping_cuts_the_share_that_it_says() -> None:
    clean = speech()
    found = distortions.clipped(clean)
    assert (found != clean).mean() == pytest.approx(distortions.CLIPPED_SHARE, abs=0.002)
    assert np.abs(found - clean.mean()).max() < np.abs(clean - clean.mean()).max()


def test_the_room_decays_by_sixty_decibels_in_its_time() -> None:
    response = distortions.room_response(np.random.default_rng(0)).astype(float)
    tail = response[1:]
    assert decibels(1 / np.square(tail).sum()) == pytest.approx(0, abs=0.01)
    # Backward integration (Schroeder, 1965), and the slope between -5 and -35 dB.
    energy = np.cumsum(np.square(tail)[::-1])[::-1]
    level = 10 * np.log10(energy / energy[0])
    fitted = (level < -5) & (level > -35)
    time = np.arange(len(tail)) / SAMPLE_RATE
    slope = np.polyfit(time[fitted], level[fitted], 1)[0]
    assert -60 / slope == pytest.approx(distortions.RT60, rel=0.1)


def test_reverberation_and_tilt_keep_length_and_level() -> None:
    clean = speech()
    for found in (
        distortions.reverberant(clean, np.random.default_rng(0)),
        distortions.tilted(clean),
    ):
        assert len(found) == len(clean)
        assert found.dtype == np.float32
        assert decibels(found.var() / clean.var()) == pytest.approx(0, abs=0.01)


def test_the_tilt_falls_by_three_decibels_an_octave() -> None:
    both = tone(500) + tone(2_000)
    spectrum = np.abs(np.fft.rfft(distortions.tilted(both))) ** 2
    assert decibels(spectrum[2_000] / spectrum[500]) == pytest.approx(-6, abs=0.05)


@given(st.integers(1, 60_000))
def test_beginnings_are_beginnings(length: int) -> None:
    clean = speech(4.0)[:length]
    for seconds in (1, 3):
        found = distortions.first_seconds(clean, seconds)
        assert np.array_equal(found, clean[: seconds * SAMPLE_RATE])


WORDS = [f"w{number}" for number in range(50)]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0.1, 0.3]), st.integers(1, 12))
def test_the_share_of_wrong_words_is_exact_on_average(share: float, count: int) -> None:
    text = " ".join(WORDS[:count])
    wrong = []
    for clip in range(300):
        found = distortions.wrong_words(text, share, WORDS, generator_for("t", str(clip))).split()
        assert len(found) == count
        wrong.append(sum(a != b for a, b in zip(found, WORDS, strict=False)))
        assert abs(wrong[-1] - share * count) < 1
    deviation = np.sqrt(300 * 0.25) / 300
    assert np.mean(wrong) == pytest.approx(share * count, abs=5 * deviation)


def test_a_clip_is_distorted_alike_in_every_run_and_unlike_another() -> None:
    voices = [speech(0.5, 9)]
    for condition in CONDITIONS.values():
        if condition.change is None:
            continue
        first, again, other = (
            condition.change(speech(), voices, generator_for(condition.name, clip))
            for clip in ("a", "a", "b")
        )
        assert np.array_equal(first, again)
        random = condition.name.startswith(("white", "babble", "reverberant"))
        assert np.array_equal(first, other) != random, condition.name


@pytest.mark.parametrize("name", [n for n, c in CONDITIONS.items() if c.change is not None])
@pytest.mark.parametrize("samples", [1, 2, 400])
def test_the_shortest_clips_can_be_distorted(name: str, samples: int) -> None:
    change = CONDITIONS[name].change
    assert change is not None
    found = change(speech()[:samples], [speech()[:3]], generator_for(name, "a"))
    assert found.shape == (samples,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
