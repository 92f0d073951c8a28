"""`EncoderSource`: an encoder that is trained with a model, by its settings and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.encoders.registry import resolve_speech, resolve_text
from multistill.encoders.slim import AS_IT_IS, EncoderSizes, slim_problems
from multistill.errors import UsageError

if TYPE_CHECKING:
    from multistill.encoders.trainable import TrainableEncoder

Section = Literal["speech", "text"]

_CONFIGS: Mapping[Section, type[SpeechEncoderConfig] | type[TextEncoderConfig]] = {
    "speech": SpeechEncoderConfig,
    "text": TextEncoderConfig,
}


@dataclass(frozen=True)
class EncoderSource:
    """All that is needed to build an encoder as it is before its training.

    Attributes:
        config: section of the job file, with `train` other than `none`.
        revision: identity of the base's weights, see `registry.resolve_speech`.
        seed: of weights that are drawn at random (`train.untrained`).
        slim: sizes to which a speech encoder is pruned before its training.
        architecture: of `TrainableEncoder.architecture`, where all weights are in a model folder
            and the base is not needed.
    """

    section: Section
    config: SpeechEncoderConfig | TextEncoderConfig
    revision: str | None
    seed: int = 0
    slim: EncoderSizes = AS_IT_IS
    architecture: Mapping[str, Any] | None = None

    def load(self) -> TrainableEncoder:
        """The encoder before training, on the CPU.

        New parameters are drawn from torch's global generator, whose state stays as it is.

        Raises:
            MultistillError: the base cannot be loaded, or cannot be trained in this way.
        """
        import torch

        from multistill.encoders.trainable import load_trainable

        with torch.random.fork_rng(devices=[]):
            return load_trainable(
                self.section, self.config, self.revision, self.seed, self.slim, self.architecture
            )

    def slimmed(self, slim: EncoderSizes) -> EncoderSource:
        """The same encoder, pruned to these sizes before its training.

        Raises:
            UsageError: it is not trained whole.
        """
        if slim.given:
            assert isinstance(self.config, SpeechEncoderConfig)
            for problem in slim_problems(self.config, slim):
                raise UsageError(f"model: {problem}")
        return replace(self, slim=slim)

    def with_training(self, train: Mapping[str, Any]) -> EncoderSource:
        """The same encoder, trained with other settings.

        Raises:
            ValueError: they contradict each other.
        """
        config = self.config.model_copy(
            update={"train": EncoderTrainingConfig.model_validate(dict(train))}
        )
        return replace(self, config=config)

    def adapted(self, train: EncoderTrainingConfig) -> EncoderSource:
        """The same encoder, trained in another way over the same layers, from the same store."""
        own = self.config.train
        kept = ("layers", "gradient_checkpointing", "time_mask", "feature_mask")
        over = train.model_copy(update={name: getattr(own, name) for name in kept})
        return replace(self, config=self.config.model_copy(update={"train": over}))

    def identity(self) -> dict[str, Any]:
        """What decides the weights of a model that trains this encoder."""
        drawn = {"seed": self.seed} if self.config.train.untrained else {}
        return {**self.config.identity(), "revision": self.revision, **drawn}

    def base(self) -> dict[str, Any]:
        """Name and revision of the weights that the training starts from."""
        return {"name": self.config.model, "revision": self.revision}

    def current_revision(self) -> str | None:
        """Identity of the base's weights as they are now: a folder may have changed.

        Raises:
            MultistillError: the base is neither on this machine nor reachable.
        """
        config = self.config
        if self.revision is not None and not self.revision.startswith("folder-"):
            config = config.model_copy(update={"revision": self.revision})
        return _resolve(self.section, config)

    def to_dict(self) -> dict[str, Any]:
        """The source as JSON values."""
        config = self.config.model_dump(mode="json")
        return {"config": config, "revision": self.revision, "seed": self.seed}

    @classmethod
    def from_dict(cls, section: Section, values: Mapping[str, Any]) -> EncoderSource:
        """Inverse of `to_dict`."""
        config = _CONFIGS[section].model_validate(values["config"])
        return cls(
            section,
            config,
            values["revision"],
            values["seed"],
            architecture=values.get("architecture"),
        )


def trained_encoders(
    config: FeaturesConfig, info: Mapping[str, Any]
) -> dict[Section, EncoderSource]:
    """The encoders of a job that are trained with its models; empty if states are kept.

    Args:
        info: of the feature store, which knows the revisions that it was made from.
    """
    return {
        section: EncoderSource(
            section, getattr(config, section), info.get(section, {}).get("revision")
        )
        for section in config.trained
    }


def _resolve(section: Section, config: SpeechEncoderConfig | TextEncoderConfig) -> str | None:
    if isinstance(config, SpeechEncoderConfig):
        return resolve_speech(config)
    return resolve_text(config)
