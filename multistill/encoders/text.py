"""Text encoders: ELECTRA, BERT and whatever is built like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from multistill.config import TextEncoderConfig
from multistill.encoders.base import TEXT_SECTION, EncoderInfo, Weights
from multistill.encoders.kinds import TEXT_ADVICE
from multistill.encoders.layers import LayerSelector
from multistill.encoders.tokenizers import HASHED, Tokenizer
from multistill.errors import MultistillError
from multistill.typing import FloatArray

UNTRAINED_SEED = 20232


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
        if not hasattr(getattr(model, "encoder", None), "layer"):
            raise MultistillError(
                f"{TEXT_SECTION}.model: `{config.model}` ({model.config.model_type}) is not built "
                f"like BERT; {TEXT_ADVICE}"
            )
        # Position ids of RoBERTa start after the padding id.
        offset = tokenizer.pad + 1 if "roberta" in model.config.model_type else 0
        self._limit = min(config.max_tokens, model.config.max_position_embeddings - offset)
        self._selector = LayerSelector(
            model, "layer", config.layers, config.combine, f"{TEXT_SECTION}.layers"
        )
        self._model = model.eval().to(device)
        self._tokenizer = tokenizer
        self._device = device
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=self._selector.width(model.config.hidden_size),
            params=sum(parameter.numel() for parameter in model.parameters()),
            layers=self._selector.indices,
            padding="mask",
            revision=revision,
            layer_params=self._selector.count_parameters(),
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
        ids = torch.full((len(rows), longest), self._tokenizer.pad, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(tokens[row])] = torch.tensor(tokens[row])
            mask[index, : len(tokens[row])] = 1
        output = self._model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
        ).last_hidden_state
        padded = self._selector.gather(output).cpu().numpy()
        for index, row in enumerate(rows):
            states[row] = padded[index, : len(tokens[row])]
        return states


def untrained_electra() -> Any:
    """A small ELECTRA with random weights from a fixed seed."""
    from transformers import ElectraConfig, ElectraModel

    settings = ElectraConfig(
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        return ElectraModel(settings)
