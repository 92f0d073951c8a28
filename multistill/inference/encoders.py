"""The encoders of a model folder, with the settings and weights that the model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.encoders import side_by_side
from multistill.encoders.base import SpeechEncoder, Stored, TextEncoder
from multistill.encoders.registry import BUILT_IN_SPEECH, BUILT_IN_TEXT, load_text, resolve_text
from multistill.encoders.stored_inputs import StoredWaves
from multistill.errors import MultistillError
from multistill.models.spec import ModelSpec


@dataclass(frozen=True)
class ModelEncoders:
    """The encoders that a head needs.

    Attributes:
        config: the settings with which the states of its training were computed.
        speech, text: None where the head does not read that modality.
    """

    config: FeaturesConfig
    speech: SpeechEncoder | None
    text: TextEncoder | None

    @property
    def stored(self) -> dict[str, Stored]:
        """What the head, or an encoder that was trained with it, reads as `audio` and `text`."""
        encoders = {"audio": self.speech, "text": self.text}
        return {k: "states" if each is None else each.info.stored for k, each in encoders.items()}

    @classmethod
    def load(
        cls, config: Mapping[str, Any], spec: ModelSpec, name: str, device: torch.device
    ) -> ModelEncoders:
        """Load what a head reads; of several speech encoders, only the one that is read.

        Args:
            config: of the model folder.
            name: of the model, for messages.

        Raises:
            MultistillError: an encoder is gone, or has other weights by now, or the model folder
                does not say which encoders its states are of.
        """
        described: Mapping[str, Mapping[str, Any]] = config["encoders"]
        features = features_of(config, spec, name)
        speech = text = None
        if spec.reads_audio:
            speech = _load_speech(features.speech, described["speech"], spec, name, device)
        if spec.reads_text:
            text = _load_text(features.text, described["text"], name, device)
        return cls(features, speech, text)


def features_of(config: Mapping[str, Any], spec: ModelSpec, name: str) -> FeaturesConfig:
    """The settings with which the states of a training were computed, at its commits.

    Args:
        config: of the model folder.
        name: of the model, for messages.

    Raises:
        MultistillError: the model folder does not say which encoders its states are of, or says it
            in a way that this version does not know.
    """
    described: Mapping[str, Mapping[str, Any]] = config["encoders"]
    needed = ["speech"] * spec.reads_audio + ["text"] * spec.reads_text
    for kind in needed:
        if not described.get(kind, {}).get("settings"):
            raise MultistillError(
                f"the model {name} does not say which {kind} encoder it reads, so recordings "
                "cannot be encoded for it; use a model folder that a job wrote"
            )
    settings = {kind: described[kind]["settings"] for kind in needed}
    try:
        features = FeaturesConfig.model_validate({**settings, "dtype": config["dtype"]})
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise MultistillError(
            f"the model {name} was trained with encoder settings that this version does not "
            f"know (features.{key}); use the version of multistill that trained it"
        ) from error
    return _pinned(features, described, spec)


def _pinned(
    config: FeaturesConfig, described: Mapping[str, Mapping[str, Any]], spec: ModelSpec
) -> FeaturesConfig:
    """The settings with the commits of the training, where a hub may have newer ones by now."""
    changes: dict[str, Any] = {}
    if spec.reads_audio:
        first, *others = (
            _pin(part.model, described_part.get("revision"), BUILT_IN_SPEECH)
            for part, described_part in zip(
                config.speech.parts, _parts(described["speech"]), strict=True
            )
        )
        additional = [
            part.model_copy(update=pin)
            for part, pin in zip(config.speech.additional, others, strict=True)
        ]
        changes["speech"] = config.speech.model_copy(update={**first, "additional": additional})
    if spec.reads_text:
        pin = _pin(config.text.model, described["text"].get("revision"), BUILT_IN_TEXT)
        changes["text"] = config.text.model_copy(update=pin)
    return config.model_copy(update=changes)


def _parts(speech: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Descriptions of all speech encoders."""
    return speech.get("parts") or [speech]


def _load_speech(
    config: SpeechEncoderConfig,
    described: Mapping[str, Any],
    spec: ModelSpec,
    name: str,
    device: torch.device,
) -> SpeechEncoder:
    if spec.slim.given:  # the model folder has all its weights
        return StoredWaves(config, "pretrained", described.get("revision"))
    parts = _parts(described)
    revisions = [part.get("revision") for part in parts]
    only = spec.encoder_read if config.additional else None
    read = [n for n, part in enumerate(config.parts) if only in {None, part.title}]
    models = " + ".join(config.parts[n].model for n in read)
    with _needed(name, "speech", models):
        weights = side_by_side.resolve(config, only)
        _compare(name, models, list(weights.values()), [revisions[n] for n in read])
        return side_by_side.load(config, weights, device, parts)


def _load_text(
    config: TextEncoderConfig, described: Mapping[str, Any], name: str, device: torch.device
) -> TextEncoder:
    revision = described.get("revision")
    with _needed(name, "text", config.model):
        resolved = resolve_text(config)
        _compare(name, config.model, [resolved], [revision])
        return load_text(config, resolved, device)


def _pin(model: str, revision: str | None, built_in: Mapping[str, Any]) -> dict[str, Any]:
    """`revision` of a model of the hub: its commit."""
    commit = revision is not None and not revision.startswith("folder-") and model not in built_in
    return {"revision": revision} if commit else {}


def _compare(
    name: str, model: str, found: Sequence[str | None], trained: Sequence[str | None]
) -> None:
    for now, then in zip(found, trained, strict=True):
        if now != then:
            raise MultistillError(
                f"the model {name} was trained on states of `{model}` with the weights {then}, "
                f"and {now} is here; restore those weights, or train the model again"
            )


@contextmanager
def _needed(name: str, kind: str, model: str) -> Iterator[None]:
    """Say which model needs the encoder that cannot be loaded.

    The advice to take another encoder, which a job file would allow, is left out: states of
    another encoder mean nothing to a trained head.
    """
    try:
        yield
    except MultistillError as error:
        if error.__cause__ is None:
            raise
        raise MultistillError(
            f"the model {name} needs the {kind} encoder `{model}` ({error.__cause__}); put it "
            "where it was when the model was trained"
        ) from error
