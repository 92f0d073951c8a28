"""Job-file sections about data: corpora, split, features."""

from __future__ import annotations

import codecs
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from multistill.config.augmentation import CopiesConfig
from multistill.config.base import Section, execution
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.config.names import FolderName

CorpusKind = Literal[
    "demo",
    "emodb",
    "kemdy19",
    "kemdy20",
    "aihub-dialogue",
    "aihub-scripted",
    "aihub-wellness",
    "table",
]
"""One name per loader: `multistill.corpora.loaders.LOADERS` maps each to its function."""


def _text_encoding(name: str) -> str:
    """Python's name of a text encoding.

    Raises:
        ValueError: there is none of that name, or it cannot read damaged text to its end, as those
            of domain names (idna, punycode).
    """
    advice = "use cp949, utf-8, cp1252 or another of Python's"
    try:
        "".encode(name)
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        raise ValueError(f"there is no text encoding `{name}`; {advice}") from None
    try:
        bytes(range(256)).decode(name, "backslashreplace")
    except ValueError:
        raise ValueError(f"`{name}` is no encoding of text files; {advice}") from None
    return codec.name


TextEncodingName = Annotated[str, AfterValidator(_text_encoding)]


class CorpusConfig(Section):
    """One corpus. Kind `table` reads any corpus that has a CSV or Parquet table."""

    kind: CorpusKind = Field(description="the loader, one per layout on disk")
    path: str | None = Field(
        None, description="folder (for `table`: the table file); `demo` takes none"
    )
    name: FolderName | None = Field(None, description="default: the kind")
    audio_root: str | None = Field(
        None, description="`table`: folder audio paths are relative to; default: the table's folder"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="`table`: our column name -> the table's column name"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="label in the corpus -> one of the job's classes"
    )
    scale: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="`table`: [lowest, highest] value of its valence, arousal and dominance, "
        "mapped to 1 to 5; default: [1, 5]",
    )
    unlabelled: bool = Field(
        False,
        description="clips for distilled students alone: the teacher's outputs are their targets, "
        "and labels that the corpus has are not read",
    )
    limit: int | None = Field(None, ge=1, description="read the first N utterances only")
    encoding: TextEncodingName | None = Field(
        None,
        description="of text files and CSV tables without a byte order mark, e.g. cp949; "
        "default: UTF-8, else what the corpus's text is most plausible in",
    )
    max_rejected: float = execution(
        1.0, ge=0.0, le=1.0, description="share of rejected rows and recordings that stops the job"
    )

    @property
    def title(self) -> str:
        return self.name or self.kind

    @model_validator(mode="after")
    def _check(self) -> CorpusConfig:
        if self.kind == "demo" and self.path is not None:
            raise ValueError("the demo corpus is packaged: remove `path`")
        if self.kind != "demo" and not self.path:
            raise ValueError(f"a corpus of kind `{self.kind}` needs `path`")
        for key in ("labels", "scale"):
            if self.unlabelled and getattr(self, key):
                raise ValueError(
                    f"the labels of an `unlabelled` corpus are not read, so `{key}` has no effect; "
                    f"remove `{key}`, or `unlabelled: true`"
                )
        if self.scale is not None and self.kind != "table":
            raise ValueError(
                f"`scale` is of a corpus of kind `table`, and the scale of `{self.kind}` is known; "
                "remove `scale`"
            )
        if self.scale is not None and self.scale[0] >= self.scale[1]:
            raise ValueError(
                f"the scale {self.scale} is empty or reversed; write the lowest value first, "
                "e.g. scale: [1, 7]"
            )
        return self


class SplitConfig(Section):
    """Train, valid and test parts, the tie policy, and caps on frequent classes."""

    by: Literal["session", "speaker", "random", "column"] = Field(
        "session", description="what stays in one part; `column`: the table's column `split`"
    )
    test: float = Field(0.2, ge=0.0, lt=1.0, description="share of groups (of rows if random)")
    valid: float = Field(
        0.15,
        ge=0.0,
        lt=1.0,
        description="share of groups that epochs and trials are chosen on; 0: none, the last epoch "
        "is the result",
    )
    seed: int = Field(
        1024,
        ge=0,
        lt=2**31,
        description="of the assignment to parts and folds; the job's `seed` does not change it",
    )
    folds: int = Field(5, ge=2, le=50, description="number of folds; groups of test are in none")
    allow_leak: bool = Field(False, description="allow a session or speaker in several parts")
    ties: Literal["soft", "drop", "first", "multi"] = Field(
        "soft",
        description="clips whose votes tie: keep the shares, drop the clip, decide for the first "
        "class, or equal shares of the tied classes",
    )
    max_per_class: dict[str, int] = Field(
        default_factory=dict, description="maximum of training utterances, e.g. {neutral: 2000}"
    )

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        if self.test + self.valid >= 1.0:
            raise ValueError("`test` and `valid` together leave nothing to train on")
        if self.by != "column" and self.test == 0.0:
            raise ValueError("`test: 0` leaves nothing to evaluate models on; use 0.2, for example")
        if self.by == "random" and not self.allow_leak:
            raise ValueError(
                "a random split puts the same speakers into train and test; use `by: session`, "
                "or set `allow_leak: true` and every table will say LEAKY SPLIT"
            )
        for name, most in self.max_per_class.items():
            if most < 0:
                raise ValueError(
                    f"max_per_class.{name}: {most} is not a number of clips; use 0 or more"
                )
        return self


class OneSpeechEncoderConfig(Section):
    """A speech encoder: `log-mel`, `smart-turn`, or a Hugging Face name or folder."""

    shorthand: ClassVar = ("model",)

    model: str = Field(
        "log-mel",
        description="`log-mel`, `smart-turn`, `untrained-wav2vec2`, a Hugging Face name or folder",
    )
    name: FolderName | None = Field(
        None,
        description="among several encoders (`additional`), for `model.speech_encoder`; default: "
        "the last part of `model`",
    )
    revision: str | None = Field(
        None, description="commit, tag or branch on the hub; default: the newest"
    )
    layers: list[int] = Field(
        default_factory=lambda: [-1],
        min_length=1,
        description="hidden states kept, as in output_hidden_states (0 is the input to layer 1)",
    )
    combine: Literal["mean", "concat"] = Field("mean", description="of several layers")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="of the encoder; `auto`: bfloat16 on GPUs that support it"
    )
    bands: int = Field(80, ge=4, le=256, description="of `log-mel`")
    window_ms: int = Field(25, ge=5, le=200, description="of `log-mel`: milliseconds of a frame")
    hop_ms: int = Field(20, ge=5, le=100, description="of `log-mel`: milliseconds between frames")

    @model_validator(mode="after")
    def _check_log_mel(self) -> OneSpeechEncoderConfig:
        for name in ("bands", "window_ms", "hop_ms"):
            default = OneSpeechEncoderConfig.model_fields[name].default
            if self.model != "log-mel" and getattr(self, name) != default:
                raise ValueError(
                    f"{name}: it is a setting of `log-mel`, and the encoder is `{self.model}`; "
                    "remove it"
                )
        return self

    @property
    def title(self) -> str:
        """Name among several encoders: `wavlm-large` of `microsoft/wavlm-large`."""
        return self.name or PurePosixPath(self.model).name or self.model

    @property
    def side_by_side(self) -> list[int]:
        """Layers whose states are stored side by side; empty if there is one state per frame."""
        return list(self.layers) if self.combine == "concat" and len(self.layers) > 1 else []


class SpeechEncoderConfig(OneSpeechEncoderConfig):
    """Speech encoder, or several side by side: `additional` ones follow the frames of the first."""

    additional: list[OneSpeechEncoderConfig] = Field(
        default_factory=list,
        description="more speech encoders, whose states stand beside those of the first, frame by "
        "frame (docs/features.md)",
    )
    max_seconds: float = Field(30.0, gt=0.1, description="longer clips are handled by `long_clips`")
    long_clips: Literal["cut", "window", "quarantine"] = Field(
        "cut", description="cut the end, encode in overlapping windows, or leave the clip out"
    )
    window_seconds: float = Field(10.0, gt=0.5, description="`long_clips: window`: of one window")
    overlap_seconds: float = Field(
        1.0,
        ge=0.0,
        description="`long_clips: window`: shared by two windows; at most half a window",
    )
    train: EncoderTrainingConfig = Field(
        default_factory=EncoderTrainingConfig,
        description="`none`, `full`, `last-K`, `lora` or `adapter`: trained with each model",
    )

    @property
    def parts(self) -> tuple[OneSpeechEncoderConfig, ...]:
        """All speech encoders, in the order of their states: this one, then the additional ones."""
        return (self, *self.additional)

    @model_validator(mode="after")
    def _check_overlap(self) -> SpeechEncoderConfig:
        # With a larger overlap most samples are encoded more than twice.
        if self.overlap_seconds > self.window_seconds / 2:
            raise ValueError(
                f"overlap_seconds: {self.overlap_seconds:g} is more than half of window_seconds: "
                f"{self.window_seconds:g}; use {self.window_seconds / 2:g} or less"
            )
        return self

    @model_validator(mode="after")
    def _check_titles(self) -> SpeechEncoderConfig:
        titles = [part.title for part in self.parts]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if twice is not None:
            raise ValueError(
                f"additional: two speech encoders are called `{twice}`; give one of them another "
                "`name`, or remove it"
            )
        return self


class TextEncoderConfig(Section):
    """Text encoder: `hashed-ngrams`, `use-multilingual`, or a Hugging Face name or folder."""

    shorthand: ClassVar = ("model",)

    model: str = Field(
        "untrained-electra",
        description="`hashed-ngrams`, `use-multilingual`, `untrained-electra`, a Hugging Face "
        "name or folder",
    )
    revision: str | None = Field(
        None, description="commit, tag or branch on the hub; default: the newest"
    )
    layers: list[int] = Field(
        default_factory=lambda: [-1],
        min_length=1,
        description="hidden states kept, as in output_hidden_states (0 is the input to layer 1)",
    )
    combine: Literal["mean", "concat"] = Field("mean", description="of several layers")
    max_tokens: int = Field(
        128, ge=8, le=512, description="longer transcripts are cut; how many is counted and said"
    )
    max_unknown: float = execution(
        0.2,
        ge=0.0,
        le=1.0,
        description="share of tokens that the tokenizer does not know that stops the job",
    )
    train: EncoderTrainingConfig = Field(
        default_factory=EncoderTrainingConfig,
        description="`none`, `full`, `last-K`, `lora` or `adapter`: trained with each model",
    )


class FeaturesConfig(Section):
    """Encoding, done once, and the store it goes to."""

    speech: SpeechEncoderConfig = Field(default_factory=SpeechEncoderConfig)
    text: TextEncoderConfig = Field(default_factory=TextEncoderConfig)
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = Field(
        "float16", description="of the states in the store"
    )
    augmentation: CopiesConfig = Field(default_factory=CopiesConfig)
    max_quarantined: float = execution(
        0.05, ge=0.0, le=1.0, description="share of failed clips that stops the stage"
    )
    batch_seconds: float = execution(80.0, gt=0, description="audio seconds in one encoder batch")
    shard_seconds: float = execution(1200.0, gt=0, description="audio seconds in one shard")
    decoders: int | None = execution(None, ge=1, description="CPU decode workers; default: sized")
    encoders: int | None = execution(None, ge=1, description="encoder actors; default: sized")
    gpus_per_encoder: float | None = execution(
        None, ge=0, description="of each encoder actor; default: one if the cluster has any"
    )
    trace: bool = execution(
        False, description="write trace.json into the store: when decoders and encoders worked"
    )

    @property
    def trained(self) -> list[Literal["speech", "text"]]:
        """The encoders that are trained with the models."""
        sections: tuple[Literal["speech", "text"], ...] = ("speech", "text")
        return [name for name in sections if getattr(self, name).train.enabled]

    def side_by_side(self) -> dict[str, list[int]]:
        """Layers that the store holds side by side, under the names of `ModelSpec`.

        Those of several speech encoders are in their parts (`ModelSpec.speech_parts`).
        """
        found = {} if self.speech.additional else {"speech_layers": self.speech.side_by_side}
        text = self.text
        if text.combine == "concat" and len(text.layers) > 1:
            found["text_layers"] = list(text.layers)
        return {name: layers for name, layers in found.items() if layers}
