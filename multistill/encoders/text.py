"""Text encoders: ELECTRA, BERT and their kin, and an untrained stand-in."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from multistill.config import TextEncoderConfig
from multistill.encoders.base import EncoderInfo, TextEncoder, Weights
from multistill.encoders.hub import load, load_model
from multistill.encoders.layers import LayerSelector
from multistill.errors import MultistillError
from multistill.typing import FloatArray

WHERE = "features.text"
STAND_IN_SEED = 20232

_PIECES = re.compile(r"\w+|[^\w\s]")


class HashedPieces:
    """Token ids without a vocabulary file: each word and each of its characters, hashed.

    Words carry what a small corpus can learn; characters carry over to inflected and unseen
    words. Works for any script; Hangul syllables count as characters.
    """

    pad, start, end, first = 0, 1, 2, 3

    def __init__(self, size: int) -> None:
        self._buckets = size - self.first

    def __call__(self, text: str, limit: int) -> list[int]:
        pieces = []
        for word in _PIECES.findall(unicodedata.normalize("NFC", text).casefold()):
            pieces.append(word)
            if len(word) > 1:
                pieces.extend(f"#{character}" for character in word)
        ids = [self.first + zlib.crc32(piece.encode()) % self._buckets for piece in pieces]
        return [self.start, *ids[: limit - 2], self.end]


class TransformerText:
    """Any BERT-like model of transformers.

    Args:
        tokenize: text and the highest number of tokens -> ids with special tokens.
        pad: id of the padding token.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Any,
        pad: int,
        config: TextEncoderConfig,
        weights: Weights,
        *,
        revision: str | None,
        device: torch.device,
    ) -> None:
        if not hasattr(getattr(model, "encoder", None), "layer"):
            raise MultistillError(
                f"{WHERE}.model: `{config.model}` ({model.config.model_type}) is not built like "
                "BERT; use an ELECTRA, BERT or RoBERTa model"
            )
        # RoBERTa's positions start behind the padding id.
        offset = pad + 1 if "roberta" in model.config.model_type else 0
        self._limit = min(config.max_tokens, model.config.max_position_embeddings - offset)
        self._kept = LayerSelector(model, "layer", config.layers, config.combine, f"{WHERE}.layers")
        self._model = model.eval().to(device)
        self._tokenize = tokenize
        self._pad = pad
        self._device = device
        self.facts = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=self._kept.width(model.config.hidden_size),
            params=sum(parameter.numel() for parameter in model.parameters()),
            layers=self._kept.indices,
            padding="mask",
            revision=revision,
        )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[FloatArray]:
        tokens = [self._tokenize(text, self._limit) if text.strip() else [] for text in texts]
        found = [np.zeros((0, self.facts.dim), np.float32) for _ in texts]
        rows = [row for row, ids in enumerate(tokens) if ids]
        if not rows:
            return found
        longest = max(len(tokens[row]) for row in rows)
        ids = torch.full((len(rows), longest), self._pad, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(tokens[row])] = torch.tensor(tokens[row])
            mask[place, : len(tokens[row])] = 1
        output = self._model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
        ).last_hidden_state
        states = self._kept.gather(output).cpu().numpy()
        for place, row in enumerate(rows):
            found[row] = states[place, : len(tokens[row])]
        return found


def untrained_electra() -> Any:
    """A small ELECTRA with random weights, the same on every machine."""
    from transformers import ElectraConfig, ElectraModel

    settings = ElectraConfig(
        vocab_size=8192,
        # ELECTRA-small's width and initial weights: narrower embeddings collide, and larger
        # random weights drown which word it was (docs/features.md has the figures).
        embedding_size=256,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(STAND_IN_SEED)
        return ElectraModel(settings)


def load_text(config: TextEncoderConfig, resolved: str | None, device: torch.device) -> TextEncoder:
    """The text encoder of a job, in eval mode on the device.

    Args:
        resolved: from `hub.resolve`.
    """
    if config.model == "untrained-electra":
        model = untrained_electra()
        return TransformerText(
            model,
            HashedPieces(model.config.vocab_size),
            HashedPieces.pad,
            config,
            "untrained",
            revision=None,
            device=device,
        )
    from transformers import AutoTokenizer

    tokenizer = load(config.model, resolved, WHERE, AutoTokenizer.from_pretrained)

    def tokenize(text: str, limit: int) -> list[int]:
        ids: list[int] = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return ids

    return TransformerText(
        load_model(config.model, resolved, WHERE),
        tokenize,
        tokenizer.pad_token_id or 0,
        config,
        "pretrained",
        revision=resolved,
        device=device,
    )
