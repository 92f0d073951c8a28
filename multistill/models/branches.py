"""Branches of a `va-fusion`: models of their own before the fusion starts from their weights.

Imports no torch, so that job files are validated quickly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from multistill.models.network_fields import BRANCH_FIELDS
from multistill.models.spec import ModelSpec

BRANCHES: tuple[Literal["audio", "text"], ...] = ("audio", "text")
"""Modalities of the branches, and the names of their modules in the fusion."""


def branch_spec(spec: ModelSpec, modality: Literal["audio", "text"]) -> ModelSpec:
    """Spec of the `va-audio` or `va-text` that a branch of a fusion is.

    Args:
        spec: of a `va-fusion`.
        modality: of the branch.
    """
    of_audio = modality == "audio"
    branch = ModelSpec(
        **{name: getattr(spec, name) for name in BRANCH_FIELDS},
        modality=modality,
        network="va-audio" if of_audio else "va-text",
        width=spec.width,
        heads=spec.va_branch_heads,
        layers=spec.va_audio_layers if of_audio else spec.va_text_layers,
        feedforward=spec.va_branch_feedforward,
        va_recurrent=spec.va_branch_recurrent,
        speech_layers=spec.speech_layers,
        text_layers=spec.text_layers,
        speech_parts=spec.speech_parts,
        train_encoder=spec.train_encoder,
        num_classes=0,
        dimensions=(spec.va_audio_dimension if of_audio else spec.va_text_dimension,),
    )
    if of_audio:
        branch = replace(
            branch,
            front_channels=spec.front_channels,
            audio_stride=spec.audio_stride,
            speech_encoder=spec.speech_encoder,
            speech_layer=spec.speech_layer,
        )
    else:
        branch = replace(branch, text_layer=spec.text_layer)
    mixed = replace(branch, layer_mix=spec.layer_mix)
    return mixed if mixed.mixed else branch
