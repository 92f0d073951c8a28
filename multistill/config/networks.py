"""Job-file fields of networks other than the emotion head (`multistill.models.network_fields`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multistill.config.base import Section

Dimension = Literal["valence", "arousal", "dominance"]


class ValenceArousalConfig(Section):
    """Overrides for presets `va-*` and `paper-va-*`."""

    va_positions: bool | None = Field(
        None, description="of `va-*` presets: positions are added to the sequences"
    )
    va_double_residual: bool | None = Field(
        None, description="of `va-*` presets: feed-forward blocks add their input twice"
    )
    va_recurrent: int | None = Field(
        None, ge=1, description="of `va-*` presets: width of the recurrent read-out"
    )
    va_recurrent_layers: int | None = Field(
        None, ge=1, description="of `va-*` presets: layers of the recurrent read-out"
    )
    va_audio_layers: int | None = Field(
        None, ge=1, description="of `va-fusion`: self-attention layers of its speech branch"
    )
    va_text_layers: int | None = Field(
        None, ge=1, description="of `va-fusion`: self-attention layers of its text branch"
    )
    va_branch_heads: int | None = Field(
        None, ge=1, description="of `va-fusion`: attention heads of both branches"
    )
    va_branch_feedforward: int | None = Field(
        None, ge=8, description="of `va-fusion`: feed-forward width of both branches"
    )
    va_branch_recurrent: int | None = Field(
        None, ge=1, description="of `va-fusion`: width of the recurrent read-out of both branches"
    )
    va_audio_dimension: Dimension | None = Field(
        None, description="of `va-fusion`: what its speech branch predicts; default: arousal"
    )
    va_text_dimension: Dimension | None = Field(
        None, description="of `va-fusion`: what its text branch predicts; default: valence"
    )
    va_frozen: bool | None = Field(
        None, description="of `va-fusion`: the branches stay as their pre-training left them"
    )


class EndToEndConfig(Section):
    """Overrides for presets `fe2e`, `mesm`, `small-fe2e`, `small-mesm` and `paper-*` of them."""

    chunk_frames: int | None = Field(
        None, ge=4, description="of `fe2e` and `mesm` presets: audio frames of a chunk"
    )
    chunk_hidden: int | None = Field(
        None, ge=8, description="of `fe2e` and `mesm` presets: width before a chunk's state"
    )
    chunk_positions: bool | None = Field(
        None, description="of `fe2e` and `mesm` presets: positions are added to the chunks"
    )
    chunk_normalization: Literal["batch", "layer"] | None = Field(
        None,
        description="of `fe2e` and `mesm` presets, after convolutions: over the batch, or over the "
        "channels of each point",
    )
    late_fusion: Literal["weighted", "gated"] | None = Field(
        None,
        description="of `fe2e` and `mesm` presets: one learnt weight for speech and one for text, "
        "or weights for each clip and class",
    )
    null_text: bool | None = Field(
        None, description="of `fe2e` and `mesm` presets: a learnt state in place of a missing text"
    )
    top_p: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="of `mesm` presets: points are computed until the text's attention to them "
        "sums to this much; 1: all",
    )
    selection_gradient: Literal["straight-through", "scaled"] | None = Field(
        None, description="of `mesm` presets: how the attention that selects points learns"
    )


class PooledConfig(Section):
    """Overrides for presets `pooled` and `pooled-strided`."""

    pooled_strides: int | None = Field(
        None,
        ge=0,
        description="of `pooled`: convolutions before the projection of speech states, each of "
        "which halves the frame rate",
    )
