"""`JointModel`: encoders and an emotion head that are trained together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from multistill.models.base import ModelOutput, Network, StateMoments
from multistill.models.build import build
from multistill.models.dimensions import DimensionScale
from multistill.models.spec import Encoder, ModelSpec

if TYPE_CHECKING:
    from multistill.encoders.trainable import TrainableEncoder

_HEAD = "head"


class JointModel(nn.Module):
    """Trainable encoders and the head that reads their states; called as a `Network` is.

    What is passed in the place of states is what the feature store keeps for a trained encoder:
    waves, token ids, or the states below the trained layers. An encoder without a place here
    was not trained, and the head reads its states from the store.

    With `spec.train_encoder` off, the encoders compute without gradients and without dropout.

    Args:
        head: for the encoders' states.
        encoders: `speech`, `text` or both.
        audio_dim, text_dim: width of what the store keeps.
    """

    def __init__(
        self,
        head: Network,
        encoders: Mapping[Encoder, TrainableEncoder],
        audio_dim: int,
        text_dim: int,
    ) -> None:
        super().__init__()
        self.head = head
        self.encoders = nn.ModuleDict()
        self.audio_dim, self.text_dim = audio_dim, text_dim
        for name, encoder in encoders.items():
            self.encoders[name] = encoder
            stored = audio_dim if name == "speech" else text_dim
            if encoder.stored_dim != stored:
                raise ValueError(
                    f"the {name} encoder reads {encoder.stored_dim} values, the store has {stored}"
                )
        if not self.spec.train_encoder:
            self.encoders.requires_grad_(False)
        self._never_trained = [p for p in self.encoders.parameters() if not p.requires_grad]

    @property
    def spec(self) -> ModelSpec:
        return self.head.spec

    @property
    def pooled_dim(self) -> int:
        return self.head.pooled_dim

    @property
    def dimension_scale(self) -> DimensionScale | None:
        return self.head.dimension_scale

    @property
    def keeps_sequences(self) -> bool:
        return self.head.keeps_sequences

    @keeps_sequences.setter
    def keeps_sequences(self, keep: bool) -> None:
        self.head.keeps_sequences = keep

    @property
    def standardizes(self) -> bool:
        return self.head.standardizes

    def fit_standardization(self, statistics: StateMoments) -> None:
        """Set centre and scale from the moments of the states before training."""
        self.head.fit_standardization(statistics)

    def unused_parameters(self) -> int:
        return self.head.unused_parameters()

    def layer_weights(self) -> list[dict[str, Any]]:
        return self.head.layer_weights()

    def train(self, mode: bool = True) -> JointModel:
        super().train(mode)
        if not self.spec.train_encoder:
            self.encoders.eval()
        return self

    def forward(
        self,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        mixing: Tensor | None = None,
    ) -> ModelOutput:
        """Arguments as of `Network.forward`, with [B, T, stored width] for states."""
        audio, audio_mask = self._encode("speech", audio, audio_mask)
        text, text_mask = self._encode("text", text, text_mask)
        output: ModelOutput = self.head(
            audio, audio_mask, text, text_mask, context, context_mask, mixing
        )
        return output

    def _encode(
        self, name: Encoder, stored: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if stored is None or name not in self.encoders:
            return stored, mask
        if mask is None:
            mask = torch.ones(stored.shape[:2], dtype=torch.bool, device=stored.device)
        with nullcontext() if self.spec.train_encoder else torch.no_grad():
            states, state_mask = self.encoders[name](stored, mask)
        return states, state_mask

    def trainable_encoders(self) -> Iterator[tuple[Encoder, TrainableEncoder]]:
        for name, module in self.encoders.items():
            yield cast(Encoder, name), cast("TrainableEncoder", module)

    def trained_encoder_state(self) -> dict[str, Tensor]:
        """What training changes of the encoders, named `speech.*` and `text.*`."""
        if not self.spec.train_encoder:
            return {}
        return {
            f"{name}.{key}": tensor
            for name, encoder in self.trainable_encoders()
            for key, tensor in encoder.trained_state().items()
        }

    def load_trained_encoder_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `trained_encoder_state`; other tensors are ignored."""
        if self.spec.train_encoder:
            for name, encoder in self.trainable_encoders():
                encoder.load_trained_state(_below(tensors, name))

    def __deepcopy__(self, memo: dict[int, Any]) -> JointModel:
        """A copy that shares the weights that are never trained: they are most of the memory."""
        memo.update({id(parameter): parameter for parameter in self._never_trained})
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


Model = Network | JointModel


def trained_state(model: Model) -> dict[str, Tensor]:
    """All that training changes: of a head its weights, of encoders what is trained of them."""
    if isinstance(model, Network):
        return model.state_dict()
    head = {f"{_HEAD}.{name}": tensor for name, tensor in model.head.state_dict().items()}
    return {**head, **model.trained_encoder_state()}


def load_trained_state(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `trained_state`."""
    if isinstance(model, Network):
        model.load_state_dict(tensors)
    else:
        model.head.load_state_dict(_below(tensors, _HEAD))
        model.load_trained_encoder_state(tensors)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def build_model(
    spec: ModelSpec,
    audio_dim: int,
    text_dim: int,
    encoders: Mapping[Encoder, TrainableEncoder],
) -> Model:
    """A `JointModel` if the model reads a trained encoder, else a head over states of the store.

    Args:
        audio_dim, text_dim: width of what the store keeps.
        encoders: that are trained; those that the model does not read are left out.
    """
    read = {
        name: encoder
        for name, encoder in encoders.items()
        if (spec.reads_audio if name == "speech" else spec.reads_text)
    }
    if not read:
        return build(spec, audio_dim, text_dim)
    speech, text = read.get("speech"), read.get("text")
    head = build(spec, speech.dim if speech else audio_dim, text.dim if text else text_dim)
    return JointModel(head, read, audio_dim, text_dim)
