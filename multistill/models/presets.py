"""Named hyperparameters: the `preset` of a job file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from multistill.errors import UsageError
from multistill.models.spec import ModelSpec

_PAPER = ModelSpec(modality="multimodal")
_SMALL = ModelSpec(
    modality="multimodal",
    width=64,
    heads=4,
    layers=2,
    feedforward=128,
    classifier=64,
    dropout=0.3,
    classifier_dropout=0.5,
    modality_dropout=0.1,
    pooling="mean",
    standardize="encoder",
    paths="both",
    wide_dropout=0.7,
    audio_stride=4,
)

_LIGHT = ModelSpec(
    modality="audio",
    fusion="concat",
    width=128,
    heads=4,
    feedforward=384,
    classifier=64,
    dropout=0.1,
    classifier_dropout=0.5,
    pooling="attentive-statistics",
    standardize="encoder",
    paths="both",
    wide_dropout=0.7,
    front="convolutional",
    front_channels=16,
    front_blocks=4,
)

_LIGHT_S = replace(_LIGHT, width=64, feedforward=160, front_channels=8, front_blocks=3)
_PAPER_VA_AUDIO = ModelSpec(
    modality="audio",
    network="va-audio",
    heads=6,
    layers=7,
    feedforward=1024,
    dropout=0.1,
    front_channels=8,
    va_double_residual=True,
    num_classes=0,
    dimensions=("arousal",),
)
_PAPER_VA_TEXT = replace(
    _PAPER_VA_AUDIO,
    modality="text",
    network="va-text",
    layers=5,
    front_channels=ModelSpec.front_channels,
    dimensions=("valence",),
)
_PAPER_VA_FUSION = ModelSpec(
    modality="multimodal",
    network="va-fusion",
    heads=6,
    layers=4,
    feedforward=3072,
    dropout=0.1,
    front_channels=8,
    va_double_residual=True,
    va_recurrent=128,
    va_frozen=True,
    num_classes=5,
)


_POOLED = ModelSpec(modality="multimodal", network="pooled", width=256)


def _corrected(spec: ModelSpec) -> ModelSpec:
    """One residual, positions, attention over the read-out's states, standardised input."""
    return replace(
        spec,
        va_double_residual=False,
        va_positions=True,
        va_frozen=False,
        pooling="attention",
        standardize="encoder",
    )


def _unimodal(spec: ModelSpec, modality: str) -> ModelSpec:
    return ModelSpec.from_dict({**spec.to_dict(), "modality": modality, "modality_dropout": 0.0})


def _student(spec: ModelSpec) -> ModelSpec:
    return replace(spec, layers=1)


_TEXT = _unimodal(_PAPER, "text")
_PAPER_TEXT = replace(_TEXT, keep_unused_projection=True)
_PAPER_AUDIO = _unimodal(_PAPER, "audio")

_PAPER_FE2E = ModelSpec(
    modality="multimodal",
    network="fe2e",
    width=64,
    heads=4,
    layers=4,
    feedforward=2048,
    dropout=0.1,
    classifier_dropout=0.0,
    front_channels=64,
)
_FE2E = replace(
    _PAPER_FE2E,
    pooling="mean",
    standardize="encoder",
    classifier_dropout=0.1,
    modality_dropout=0.1,
    chunk_positions=True,
    chunk_normalization="layer",
    late_fusion="gated",
    null_text=True,
)
_SMALL_FE2E = replace(
    _FE2E,
    layers=2,
    feedforward=128,
    front_channels=4,
    chunk_hidden=64,
    classifier_dropout=0.3,
)


def _sparse(spec: ModelSpec) -> ModelSpec:
    return replace(spec, network="mesm", top_p=0.7)


PRESETS: dict[str, ModelSpec] = {
    "paper-teacher": _PAPER,
    "paper-text-teacher": _PAPER_TEXT,
    "paper-audio-teacher": _PAPER_AUDIO,
    "paper-student": _student(_PAPER),
    "paper-text-student": _student(_PAPER_TEXT),
    "paper-audio-student": _student(_PAPER_AUDIO),
    "text-teacher": _TEXT,
    "text-student": _student(_TEXT),
    "small-teacher": _SMALL,
    "small-text-teacher": _unimodal(_SMALL, "text"),
    "small-audio-teacher": _unimodal(_SMALL, "audio"),
    "small-student": _student(_SMALL),
    "small-text-student": _student(_unimodal(_SMALL, "text")),
    "small-audio-student": _student(_unimodal(_SMALL, "audio")),
    "light-student-s": _LIGHT_S,
    "light-student": _LIGHT,
    "light-student-l": replace(
        _LIGHT, width=256, feedforward=512, front_channels=32, front_blocks=8, classifier=128
    ),
    "light-multimodal-student": replace(_LIGHT_S, modality="multimodal", modality_dropout=0.1),
    "light-text-student": replace(_LIGHT_S, modality="text", front="linear"),
    "pooled": _POOLED,
    "pooled-strided": replace(_POOLED, pooled_strides=3),
    "paper-va-audio": _PAPER_VA_AUDIO,
    "paper-va-text": _PAPER_VA_TEXT,
    "paper-va-fusion": _PAPER_VA_FUSION,
    "va-audio": _corrected(_PAPER_VA_AUDIO),
    "va-text": _corrected(_PAPER_VA_TEXT),
    "va-fusion": replace(_corrected(_PAPER_VA_FUSION), dimensions=("valence", "arousal")),
    "paper-fe2e": _PAPER_FE2E,
    "paper-mesm": _sparse(_PAPER_FE2E),
    "fe2e": _FE2E,
    "mesm": _sparse(_FE2E),
    "small-fe2e": _SMALL_FE2E,
    "small-mesm": _sparse(_SMALL_FE2E),
}
"""`paper-*` are the published heads (Multi-Still 2023) for 1024-d audio and 768-d text states.
`text-*` are the published text heads without the audio projection that they never use.
`small-*` are for corpora of hundreds to thousands of clips: they standardise their input and have
a linear path beside the deep one (docs/models.md has the measurements). `light-*` read log-mel
energies and, with hashed n-grams as text states, have no encoder before them. `paper-va-*` are the
networks of a public system that learns valence and arousal before emotion, for 128 log-mel bands
and 768-d text states, and `va-*` the same without its faults; `*fe2e` and `*mesm` are end to end
over log-mel chunks and a text encoder (Dai et al. 2021), in the same two forms (docs/systems.md).
"""


def resolve(preset: str, overrides: Mapping[str, Any]) -> ModelSpec:
    """Return a preset with some fields replaced.

    Raises:
        UsageError: an unknown preset (names the nearest one), an unknown field, or values that
            are incompatible with each other.

    Examples:
        >>> spec = resolve("small-student", {"layers": 2})
        >>> spec.width, spec.layers
        (64, 2)
    """
    if preset not in PRESETS:
        matches = get_close_matches(preset, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean `{matches[0]}`?" if matches else f"use one of {', '.join(PRESETS)}"
        raise UsageError(f"model: there is no preset `{preset}`; {hint}")
    return ModelSpec.from_dict({**PRESETS[preset].to_dict(), **overrides})
