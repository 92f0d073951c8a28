"""Input standardisation, statistics pooling and the linear path, against NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoder_states import random_states

from multistill.errors import UsageError
from multistill.features.statistics import (
    Moments,
    StateStatistics,
    clip_statistics,
    clip_width,
)
from multistill.models.build import build
from multistill.models.files import ModelInfo, load_model, save_model
from multistill.models.layers import AttentiveStatisticsPool, StatisticsPool
from multistill.models.presets import PRESETS
from multistill.models.spec import ModelSpec
from multistill.models.wide import Wide

AUDIO, TEXT = 10, 6
SPEC = ModelSpec("multimodal", width=8, heads=2, layers=1, feedforward=12, classifier=5)
STANDARDIZED = replace(SPEC, standardize="dimension")
BOTH = replace(STANDARDIZED, paths="both")


def states() -> tuple[torch.Tensor, ...]:
    """Audio, its mask, text, its mask: four utterances, zeros at padding."""
    audio, audio_mask = random_states([5, 3, 1, 4], AUDIO)
    text, text_mask = random_states([2, 6, 1, 0], TEXT)
    return audio.nan_to_num(0), audio_mask, text.nan_to_num(0), text_mask


def statistics(audio: int = AUDIO, text: int = TEXT) -> StateStatistics:
    rng = np.random.default_rng(0)
    dims = {"audio": audio, "text": text}
    dims |= {f"{name}_clips": clip_width(name, dim) for name, dim in dims.items()}
    return StateStatistics(
        **{
            name: Moments(5 * rng.normal(size=dim), rng.uniform(0.5, 3, dim), 9)
            for name, dim in dims.items()
        },
        scaling={"speech": "global", "text": "dimension"},
        encoders={},
        clips=9,
    )


def test_states_enter_a_head_standardized() -> None:
    """A head of standardised states and a plain head of the same weights agree."""
    torch.manual_seed(0)
    head = build(STANDARDIZED, AUDIO, TEXT).eval()
    plain = build(replace(STANDARDIZED, standardize="none"), AUDIO, TEXT).eval()
    plain.load_state_dict(head.state_dict(), strict=False)
    moments = statistics()
    head.fit_standardization(moments)
    audio, audio_mask, text, text_mask = states()
    raw = [
        x * torch.from_numpy(m.deviation).float() + torch.from_numpy(m.mean).float()
        for x, m in ((audio, moments.audio), (text, moments.text))
    ]
    torch.testing.assert_close(
        head(raw[0], audio_mask, raw[1], text_mask).logits,
        plain(audio, audio_mask, text, text_mask).logits,
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("turns", [1, 3])
def test_previous_turns_are_standardized_and_absent_ones_stay_zero(turns: int) -> None:
    torch.manual_seed(0)
    head = build(replace(STANDARDIZED, context_turns=turns), AUDIO, TEXT)
    moments = statistics()
    head.fit_standardization(moments)
    context = torch.zeros(1, 2, TEXT + AUDIO)
    context[0, 0, :TEXT] = torch.from_numpy(moments.text.mean + moments.text.deviation)
    standardized = head._standardize_context(context)
    assert standardized is not None
    torch.testing.assert_close(standardized[0, 0, :TEXT], torch.ones(TEXT))
    assert not standardized[0, 0, TEXT:].any() and not standardized[0, 1].any()


def test_the_statistics_are_in_the_model_folder(tmp_path: Path) -> None:
    head = build(BOTH, AUDIO, TEXT).eval()
    head.fit_standardization(statistics())
    save_model(head, tmp_path, ModelInfo("teacher"))
    loaded = load_model(tmp_path)
    inputs = states()
    torch.testing.assert_close(loaded(*inputs).logits, head(*inputs).logits)


def test_statistics_of_other_states_are_refused() -> None:
    head = build(STANDARDIZED, AUDIO, TEXT)
    with pytest.raises(ValueError, match="11 dimensions for states of 10"):
        head.fit_standardization(statistics(audio=11))


@pytest.mark.parametrize("pool", [StatisticsPool(), AttentiveStatisticsPool(AUDIO)])
def test_statistics_pooling_is_mean_and_deviation_of_the_unpadded_positions(
    pool: torch.nn.Module,
) -> None:
    audio, mask, _, _ = states()
    pooled = pool(audio, mask)
    for row in range(4):
        real = audio[row][mask[row]].numpy()
        expected = np.concatenate([real.mean(axis=0), real.std(axis=0)])
        np.testing.assert_allclose(pooled[row].detach(), expected, atol=2e-3)
    assert not pool(audio, torch.zeros_like(mask)).any()


def test_the_gradient_of_a_single_state_is_finite() -> None:
    single = torch.randn(2, 1, AUDIO, requires_grad=True)
    pooled = StatisticsPool()(single, torch.ones(2, 1, dtype=torch.bool))
    pooled.sum().backward()
    assert single.grad is not None and single.grad.isfinite().all()


def test_the_linear_path_reads_statistics_change_and_length() -> None:
    audio, audio_mask, text, text_mask = states()
    pooled = Wide(BOTH, AUDIO, TEXT).pool([(audio, audio_mask), (text, text_mask)])
    for row in range(4):
        a, t = (x[row][m[row]].numpy() for x, m in ((audio, audio_mask), (text, text_mask)))
        tokens = clip_statistics("text", t) if len(t) else np.zeros(TEXT + 1)
        expected = np.concatenate([clip_statistics("audio", a), tokens])
        np.testing.assert_allclose(pooled[row], expected, atol=2e-3)


def test_the_linear_path_standardizes_what_it_pools_and_a_missing_modality_is_zero() -> None:
    wide = Wide(BOTH, AUDIO, TEXT)
    moments = statistics()
    for modality in ("audio", "text"):
        wide.fit(modality, *moments.scaled_clips(modality), slice(None))
    audio, audio_mask, text, text_mask = states()
    plain = Wide(BOTH, AUDIO, TEXT).pool([(audio, audio_mask), (text, text_mask)])
    pooled = wide.pool([(audio, audio_mask), (text, text_mask)])
    clips = (moments.audio_clips, moments.text_clips)
    centre, scale = (np.concatenate([getattr(m, n) for m in clips]) for n in ("mean", "deviation"))
    expected = (plain.numpy() - centre) / scale
    present = text_mask.any(dim=1).numpy()
    assert not present[3] and not pooled[3, clip_width("audio", AUDIO) :].any()
    np.testing.assert_allclose(pooled[present], expected[present], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_linear_path_of_one_layer_takes_the_statistics_of_that_layer(layer: int) -> None:
    stored = replace(BOTH, speech_layers=(0, 1), text_layers=(0, 1))
    spec = replace(stored, speech_layer=layer, text_layer=layer)
    head = build(spec, 2 * AUDIO, 2 * TEXT)
    moments = statistics(2 * AUDIO, 2 * TEXT)
    head.fit_standardization(moments)
    assert head.wide is not None
    for modality, dim in (("audio", AUDIO), ("text", TEXT)):
        whole = moments.scaled_clips(modality)[0]
        columns = whole[:-1].reshape(-1, 2, dim)[:, layer].ravel()
        expected = torch.from_numpy(np.append(columns, whole[-1]))
        assert torch.equal(head.wide.standardize[modality].centre, expected)


def test_the_deep_path_starts_at_zero_beside_a_linear_one() -> None:
    head = build(BOTH, AUDIO, TEXT).eval()
    inputs = states()
    assert head.wide is not None
    pairs = [(inputs[0], inputs[1]), (inputs[2], inputs[3])]
    torch.testing.assert_close(head(*inputs).logits, head.wide(head.wide.pool(pairs)))


@pytest.mark.parametrize("preset", PRESETS)
def test_published_heads_read_states_as_they_are(preset: str) -> None:
    published = not preset.startswith(("small-", "light-", "va-"))
    assert (PRESETS[preset].standardize == "none") == published
    assert not (published and PRESETS[preset].wide)


def test_a_wide_head_has_no_other_parameters_and_pools_statistics() -> None:
    head = build(replace(BOTH, paths="wide"), AUDIO, TEXT).eval()
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"wide"}
    logits, pooled = head(*states())[:2]
    assert pooled.shape[1] == head.pooled_dim == 3 * AUDIO + 1 + TEXT + 1
    assert logits.shape == (len(pooled), STANDARDIZED.num_classes)
    with pytest.raises(UsageError, match="wide path does not read context_turns"):
        replace(BOTH, paths="wide", context_turns=1)
