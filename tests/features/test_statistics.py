"""Statistics of the training part's states: one pass, only these utterances, odd dimensions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.features_case import make_store, random_clips
from hypothesis import given
from hypothesis import strategies as st

from multistill.encoders.base import Scaling
from multistill.errors import MultistillError
from multistill.features.statistics import (
    INFO,
    TENSORS,
    Moments,
    clip_statistics,
    moments_of,
    read_statistics,
    training_statistics,
    write_statistics,
)
from multistill.features.store import FeatureStore


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    st.floats(-1e4, 1e4),
    st.floats(1e-2, 10),
)
def test_moments_of_parts_are_those_of_the_whole(
    lengths: list[int], offset: float, spread: float
) -> None:
    rng = np.random.default_rng(len(lengths))
    parts = [(offset + spread * rng.normal(size=(n, 3))).astype(np.float32) for n in lengths]
    whole = np.concatenate(parts).astype(np.float64)
    result, clips = moments_of("text", iter(parts), 3)
    assert result.count == len(whole) and clips.count == sum(map(bool, lengths))
    np.testing.assert_allclose(result.mean, whole.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.deviation, whole.std(axis=0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sequence_that_is_not_finite_spoils_no_other(value: float) -> None:
    parts = list(np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32))
    expected, _ = moments_of("audio", iter(parts), 3)
    broken = parts[0].copy()
    broken[2, 1] = value
    found, clips = moments_of("audio", iter([*parts[:2], broken, *parts[2:]]), 3)
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.deviation, expected.deviation)
    assert found.count == expected.count and clips.count == len(parts)


def test_only_the_training_utterances_are_read(tmp_path: Path) -> None:
    clips = random_clips(12)
    store = make_store(tmp_path, clips, "float32")
    train = [clip.utterance_id for clip in clips[:5]]
    result = training_statistics(store, [*train, "quarantined"])
    audio = np.concatenate([clip.audio for clip in clips[:5]])
    assert result.clips == 5
    np.testing.assert_allclose(result.audio.mean, audio.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(result.audio.deviation, audio.std(axis=0), atol=1e-6)


def test_the_files_are_read_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = random_clips(11)[::-1]  # ids in another order than the files
    store = make_store(tmp_path, clips)
    read: list[tuple[str, str]] = []
    raw = FeatureStore.raw

    def recorded(self: FeatureStore, modality: str, name: str) -> Any:
        read.append((modality, name))
        return raw(self, modality, name)

    monkeypatch.setattr(FeatureStore, "raw", recorded)
    training_statistics(store, list(store.ids))
    names = [clip.utterance_id for clip in clips]
    assert read == [(modality, name) for modality in ("audio", "text") for name in names]


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_clip_statistics_are_those_of_each_training_utterance(
    tmp_path: Path, modality: str
) -> None:
    store = make_store(tmp_path, random_clips(8), "float32")
    result = training_statistics(store, store.ids)
    read = store.audio if modality == "audio" else store.text
    sequences = [np.float64(read(name)) for name in store.ids]
    rows = [clip_statistics(modality, states) for states in sequences if len(states)]
    found: Moments = getattr(result, f"{modality}_clips")
    np.testing.assert_allclose(found.mean, np.mean(rows, axis=0))
    np.testing.assert_allclose(found.deviation, np.std(rows, axis=0), atol=1e-12)


def test_no_training_utterance_with_features_is_one_sentence(tmp_path: Path) -> None:
    store = make_store(tmp_path, random_clips(4))
    with pytest.raises(MultistillError, match="no training utterance has features"):
        training_statistics(store, ["quarantined"])


def test_one_clip_of_one_state_is_centred_and_not_scaled() -> None:
    one, clips = moments_of("audio", [np.full((1, 4), 7.0, np.float32)], 4)
    centre, scale = one.scaled("dimension")
    assert (centre == 7).all() and (scale == 1).all()
    centre, scale = clips.scaled("dimension")
    np.testing.assert_allclose(centre, [7] * 4 + [0] * 8 + [np.log(2)], rtol=1e-6)
    assert (scale == 1).all()


def test_constant_dimensions_are_centred_and_not_scaled() -> None:
    states = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    states[:, 1] = 1e4 + 1e-3 * states[:, 1]  # rounding of float32
    states[:, 2] = 0.0
    centre, scale = moments_of("text", [states], 3)[0].scaled("dimension")
    standardized = (states - centre) / scale
    assert np.abs(standardized).max() < 6
    assert scale[1] == scale[2] == 1.0 and scale[0] != 1.0


def test_all_dimensions_share_one_scale_where_they_have_one_unit() -> None:
    states = np.random.default_rng(0).normal([0, 3], [1, 2], size=(4000, 2)).astype(np.float32)
    centre, scale = moments_of("text", [states], 2)[0].scaled("global")
    assert centre[0] == centre[1] == pytest.approx(states.mean(), abs=1e-4)
    assert scale[0] == scale[1] == pytest.approx(states.std(), abs=1e-4)


def test_no_text_at_all_gives_zeros(tmp_path: Path) -> None:
    empty, _ = moments_of("text", [np.zeros((0, 3), np.float32)], 3)
    centre, scale = empty.scaled("dimension")
    assert not centre.any() and (scale == 1).all()


def test_what_is_written_is_read_and_damage_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", random_clips(6), "float32")
    parts: list[tuple[int, Scaling]] = [(3, "dimension"), (store.audio_dim - 3, "global")]
    written = replace(training_statistics(store, store.ids), speech_parts=parts)
    write_statistics(written, tmp_path)
    read = read_statistics(tmp_path)
    assert read.speech_parts == parts
    for name in ("audio", "text", "audio_clips", "text_clips"):
        before: Moments = getattr(written, name)
        np.testing.assert_array_equal(getattr(read, name).mean, before.mean)
        np.testing.assert_array_equal(getattr(read, name).deviation, before.deviation)
    assert read.encoders == written.encoders and read.clips == 6
    content = (tmp_path / TENSORS).read_bytes()
    for name, data in ((TENSORS, content[:-3]), (TENSORS, b""), (INFO, b"{")):
        intact = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MultistillError, match="missing or damaged"):
            read_statistics(tmp_path)
        (tmp_path / name).write_bytes(intact)
