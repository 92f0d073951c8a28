"""Text encoders: ELECTRA, BERT and whatever is built like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from multistill.config import TextEncoderConfig
from multistill.encoders.base import TEXT_SECTION, EncoderInfo, Weights
from multistill.encoders.kinds import TEXT_ADVICE
from multistill.encoders.layers import LayerSelector
from multistill.encoders.tokenizers import HASHED, Tokenizer
from multistill.encoders.trained_layers import stored_layers
from multistill.errors import MultistillError
from multistill.typing import FloatArray

UNTRAINED_SEED = 20232


class TextNetwork(nn.Module):
    """A BERT-like model of transformers, from token ids or a hidden state to hidden states.

    Args:
        layers: hidden states that are selected.
        combine: how several become one.
        pad: id of the padding token.

    Raises:
        UsageError: the model lacks one of the layers.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        combine: Literal["mean", "concat"],
        pad: int,
    ) -> None:
        super().__init__()
        self.selector = LayerSelector(model, "layer", layers, combine, f"{TEXT_SECTION}.layers")
        self.model = model
        self.pad = pad
        self.hidden = int(model.config.hidden_size)
        self.dim = self.selector.width(self.hidden)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States [B, T, dim] float32 of token ids [B, T].

        Args:
            mask: [B, T] bool, False at padding; at least one token of each text is True.
        """
        padded = ids.masked_fill(~mask, self.pad)
        output = self.model(input_ids=padded, attention_mask=mask.long())
        return self.selector.gather(output.last_hidden_state)

    @property
    def final_norm(self) -> None:
        """BERT-like models have no norm after their layers."""
        return None

    def start_at(self, first: int) -> None:
        """Remove what lies below hidden state `first`, which `from_states` then reads."""
        self.selector.start_at(first)
        self.model.embeddings = _Embedded()
        if hasattr(self.model, "embeddings_project"):
            self.model.embeddings_project = nn.Identity()

    def from_states(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Like `forward`, of the hidden state that `start_at` named [B, T, hidden].

        Args:
            mask: None: nothing is padded.
        """
        seen = None if mask is None else mask.long()
        output = self.model(inputs_embeds=states, attention_mask=seen)
        return self.selector.gather(output.last_hidden_state)


class _Embedded(nn.Module):
    """In the place of embeddings whose result is the input."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Tensor:
        return inputs_embeds


class TransformerText:
    """Any BERT-like model of transformers, or one with the same attributes.

    Args:
        revision: from `hub.resolve`.

    Raises:
        MultistillError: the model is not built like BERT.
        UsageError: the model lacks one of the configured layers.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        config: TextEncoderConfig,
        weights: Weights,
        *,
        revision: str | None,
        device: torch.device,
    ) -> None:
        refuse_other_kinds(model, config)
        self._limit = token_limit(model.config, tokenizer, config)
        layers = stored_layers(config, len(model.encoder.layer))
        network = TextNetwork(model, layers, config.combine, tokenizer.pad)
        self.network = network.eval().to(device)
        self._tokenizer = tokenizer
        self._device = device
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=network.dim,
            params=sum(parameter.numel() for parameter in model.parameters()),
            layers=network.selector.indices,
            padding="mask",
            revision=revision,
            layer_params=network.selector.count_parameters(),
        )

    def is_cut(self, text: str) -> bool:
        return bool(text.strip()) and self._tokenizer(text, self._limit).cut

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[FloatArray]:
        tokens = [self._tokenizer(text, self._limit).ids if text.strip() else [] for text in texts]
        states = [np.zeros((0, self.info.dim), np.float32) for _ in texts]
        rows = [row for row, ids in enumerate(tokens) if ids]
        if not rows:
            return states
        longest = max(len(tokens[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : len(tokens[row])] = torch.tensor(tokens[row])
            mask[index, : len(tokens[row])] = True
        padded = self.network(ids.to(self._device), mask.to(self._device)).cpu().numpy()
        for index, row in enumerate(rows):
            states[row] = padded[index, : len(tokens[row])]
        return states


def token_limit(settings: Any, tokenizer: Tokenizer, config: TextEncoderConfig) -> int:
    """Tokens that a model reads of a text.

    Args:
        settings: configuration of the model.
    """
    # Position ids of RoBERTa start after the padding id.
    offset = tokenizer.pad + 1 if "roberta" in settings.model_type else 0
    return min(config.max_tokens, int(settings.max_position_embeddings) - offset)


def refuse_other_kinds(model: Any, config: TextEncoderConfig) -> None:
    """Refuse a model that is not built like BERT.

    Raises:
        MultistillError: it is not.
    """
    if not hasattr(getattr(model, "encoder", None), "layer"):
        raise MultistillError(
            f"{TEXT_SECTION}.model: `{config.model}` ({model.config.model_type}) is not built "
            f"like BERT; {TEXT_ADVICE}"
        )


def untrained_electra() -> Any:
    """A small ELECTRA with random weights from a fixed seed."""
    from transformers import ElectraModel

    settings = untrained_settings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        return ElectraModel(settings)


def untrained_settings() -> Any:
    """Configuration of `untrained_electra`."""
    from transformers import ElectraConfig

    return ElectraConfig(
        vocab_size=HASHED,
        # ELECTRA-small's width and initial weights: narrower embeddings collide, and larger
        # random weights hide which word it was.
        embedding_size=256,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
    )
