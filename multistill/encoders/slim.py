"""Sizes of a slimmed speech encoder, and what cannot be slimmed. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multistill.config import SpeechEncoderConfig
from multistill.encoders.kinds import BUILT_IN_SIZES, SLIMMABLE, WHISPER
from multistill.encoders.small_files import Fields
from multistill.encoders.trained_layers import kind_as_written


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of a transformer; None: unknown, or of a slimmed one, those of its base.

    Attributes:
        layers: from the lowest.
        heads: attention heads of each layer.
        feedforward: units of each feed-forward part.
    """

    layers: int | None = None
    heads: int | None = None
    feedforward: int | None = None

    @property
    def given(self) -> bool:
        """Whether any size is given."""
        return any(value is not None for value in vars(self).values())


AS_IT_IS = EncoderSizes()
"""Of an encoder that is not slimmed."""


def sizes_of(config: SpeechEncoderConfig, settings: Fields | None) -> EncoderSizes:
    """Sizes of an encoder, where they are known.

    Args:
        settings: config.json of its folder.
    """
    if config.model in BUILT_IN_SIZES:
        return EncoderSizes(*BUILT_IN_SIZES[config.model])
    if settings is None:
        return EncoderSizes()
    names = ("num_hidden_layers", "num_attention_heads", "intermediate_size")
    if settings.text("model_type") == WHISPER:
        names = ("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    return EncoderSizes(*(settings.whole(name) for name in names))


def slim_problems(
    config: SpeechEncoderConfig,
    slim: EncoderSizes,
    base: EncoderSizes | None = None,
    model_type: str | None = None,
) -> Iterator[str]:
    """A sentence for each reason why a speech encoder cannot be slimmed to these sizes.

    Args:
        config: of the encoder.
        base: its sizes, where they are known.
        model_type: of its config.json, where it is known.
    """
    if config.train.kind != "full":
        written = kind_as_written(config.train)
        yield (
            "a slimmed encoder is trained whole, from waves, and features.speech.train is "
            f"`{written}`; set `train: full` there (with `train_encoder: false`, other models "
            "leave it as it is)"
        )
        return
    if model_type is not None and model_type not in SLIMMABLE:
        yield (
            f"the layers of `{config.model}` ({model_type}) cannot be slimmed; use an encoder of "
            f"type {', '.join(sorted(SLIMMABLE))}, or remove the sizes `encoder_...`"
        )
        return
    if len(config.layers) > 1:
        yield (
            "a slimmed encoder gives the states of its last layer alone, and features.speech."
            "layers names several; name one layer there"
        )
    for name, own in vars(slim).items():
        there = None if base is None else getattr(base, name)
        if own is not None and there is not None and own > there:
            what = {"heads": "attention heads", "feedforward": "feed-forward units"}.get(name, name)
            yield (
                f"encoder_{name}: {own} is more than the {there} {what} of `{config.model}`; lower "
                "the size"
            )
