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


class PooledConfig(Section):
    """Overrides for presets `pooled` and `pooled-strided`."""

    pooled_strides: int | None = Field(
        None,
        ge=0,
        description="of `pooled`: convolutions before the projection of speech states, each of "
        "which halves the frame rate",
    )
