"""Augmentation of training clips: of the states that a head reads, and of recordings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from multistill.config.base import Section

NoiseKind = Literal["white", "pink", "babble"]


class AugmentationConfig(Section):
    """Random changes of the states that a model is trained on; all off by default.

    They are drawn from (seed, epoch, utterance). Validation and test are never changed.
    """

    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="alpha of the Beta distribution that the share of a second training clip is "
        "drawn from (Zhang et al. 2018); 0: none",
    )
    mixup_of: Literal["states", "pooled"] = Field(
        "states",
        description="what is mixed: the states that the model reads, or the pooled state that its "
        "classifier reads (manifold mixup, Verma et al. 2019)",
    )
    time_masks: int = Field(
        0, ge=0, le=20, description="stretches of audio frames set to their mean (SpecAugment)"
    )
    time_width: float = Field(
        0.1, gt=0, le=0.5, description="longest stretch, as a share of the clip"
    )
    feature_masks: int = Field(
        0, ge=0, le=20, description="bands of audio dimensions set to their mean (SpecAugment)"
    )
    feature_width: float = Field(
        0.1, gt=0, le=0.5, description="widest band, as a share of the dimensions"
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Gaussian noise on all states, in deviations of their dimension over the "
        "training part",
    )
    word_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of token states that are left out, never the first"
    )
    word_swap: float = Field(
        0.0,
        ge=0,
        le=1,
        description="pairs of token states that change places, as a share of the tokens, never "
        "the first",
    )
    only: list[str] = Field(
        default_factory=list,
        description="classes whose clips are changed, e.g. the rare ones; default: all. Of no "
        "effect on mixup",
    )

    @property
    def changes_states(self) -> bool:
        """Whether states are changed otherwise than by mixing."""
        of_audio = self.time_masks or self.feature_masks
        return bool(of_audio or self.noise or self.word_dropout or self.word_swap)

    @property
    def enabled(self) -> bool:
        return self.mixup > 0 or self.changes_states

    @property
    def mixes_pooled(self) -> bool:
        return self.mixup > 0 and self.mixup_of == "pooled"


def _range(low: float, high: float, description: str) -> Any:
    return Field(
        default_factory=lambda: [low, high], min_length=2, max_length=2, description=description
    )


class CopiesConfig(Section):
    """More takes of every training clip, each distorted by its own draw and encoded once.

    Each distortion has the probability that a copy gets it, and the range that its strength is
    drawn from. They follow each other in this order: speed, reverberation, noise, gain, codec.
    """

    copies: int = Field(
        0, ge=0, le=20, description="distorted copies of every training clip; 0: none"
    )
    seed: int = Field(
        1024, ge=0, lt=2**31, description="of the copies; the job's `seed` does not change them"
    )
    speed: float = Field(
        0.5, ge=0, le=1, description="probability of another speed (Ko et al. 2015)"
    )
    speed_range: list[float] = _range(
        0.9, 1.1, "factors of the speed, which changes tempo and pitch"
    )
    reverberation: float = Field(0.3, ge=0, le=1, description="probability of a room")
    reverberation_seconds: list[float] = _range(
        0.2, 0.8, "in which the reverberation of a generated room falls by 60 dB"
    )
    rooms: str | None = Field(
        None, description="folder of recorded impulse responses; default: generated ones"
    )
    noise: float = Field(0.5, ge=0, le=1, description="probability of added noise")
    noise_db: list[float] = _range(10.0, 30.0, "signal-to-noise ratios in dB")
    noise_kinds: list[NoiseKind] = Field(
        default_factory=lambda: list[NoiseKind](("white", "pink")),
        min_length=1,
        description="generated noise; `babble` is made of training clips of other speakers, and "
        "needs a holdout",
    )
    noise_folder: str | None = Field(
        None, description="folder of recorded noise, used in place of generated noise"
    )
    gain: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of another recording level: cut at full scale and rounded to 16 "
        "bits, since encoders normalise the level itself",
    )
    gain_db: list[float] = _range(-20.0, 6.0, "changes of the level in dB")
    codec: float = Field(
        0.0, ge=0, le=1, description="probability of a telephone: 300 to 3400 Hz and mu-law"
    )

    @model_validator(mode="after")
    def _check(self) -> CopiesConfig:
        for name, lowest, highest in (
            ("speed_range", 0.5, 2.0),
            ("reverberation_seconds", 0.05, 5.0),
            ("noise_db", -10.0, 60.0),
            ("gain_db", -40.0, 20.0),
        ):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"{name}: the range [{low:g}, {high:g}] is reversed; write the lowest value "
                    "first"
                )
            if low < lowest or high > highest:
                raise ValueError(
                    f"{name}: [{low:g}, {high:g}] is out of range; use values from {lowest:g} to "
                    f"{highest:g}"
                )
        if self.copies and not (
            self.speed or self.reverberation or self.noise or self.gain or self.codec
        ):
            raise ValueError(
                "every copy would be the clip itself, since all probabilities are 0; raise one, "
                "e.g. `noise: 0.5`, or remove `copies`"
            )
        return self

    @property
    def reads_voices(self) -> bool:
        """Whether copies need the voices of other training clips."""
        generated = self.noise > 0 and self.noise_folder is None
        return self.copies > 0 and generated and "babble" in self.noise_kinds

    def folders(self) -> dict[str, str]:
        """Folders of recordings that the copies are made with, by field."""
        if not self.copies:
            return {}
        used = {
            "rooms": self.rooms if self.reverberation else None,
            "noise_folder": self.noise_folder if self.noise else None,
        }
        return {name: folder for name, folder in used.items() if folder is not None}
