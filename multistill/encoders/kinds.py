"""Kinds of encoders, by `model_type` of config.json: what reads speech, what reads text, and how.

Imports no torch: job files are validated with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Reader = Literal["wav2vec2", "whisper", "w2v-bert", "emotion2vec"]
"""How a speech encoder reads a wave: raw audio through convolutions, Whisper's log-mel of which the
encoder half is used, the filter banks of W2v-BERT, or a converted emotion2vec."""

WHISPER, W2V_BERT, EMOTION2VEC = "whisper", "wav2vec2-bert", "emotion2vec"
_READERS: Mapping[str, Reader] = {
    WHISPER: "whisper",
    W2V_BERT: "w2v-bert",
    EMOTION2VEC: "emotion2vec",
}
# fmt: off
LIKE_WAV2VEC2 = frozenset({
    "wav2vec2", "wav2vec2-conformer", "hubert", "wavlm", "data2vec-audio", "unispeech",
    "unispeech-sat", "sew",
})
"""Types whose layers are where `speech.Wav2Vec2Family` looks for them."""
LIKE_BERT = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2",
    "electra", "ernie", "esm", "ibert", "layoutlm", "lilt", "longformer", "luke", "megatron-bert",
    "mobilebert", "mpnet", "mra", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "splinter", "xlm-roberta", "xlm-roberta-xl",
})
"""Types whose layers are where `text.TransformerText` looks for them."""
UNLIKE_BERT = frozenset({"convbert", "nystromformer", "xmod", "yoso"})
"""Types with layers there that do not attend as BERT's do: the states of a text depend on the
padding behind it, or on a language that must be named first (xmod)."""
# fmt: on

SPEECH_ADVICE = "use a wav2vec2, HuBERT, WavLM, data2vec-audio, Whisper or W2v-BERT model"
TEXT_ADVICE = "use an ELECTRA, BERT or RoBERTa model"

BUILT_IN_LAYERS: Mapping[str, int] = {
    "hashed-ngrams": 0,
    "log-mel": 0,
    "smart-turn": 2,
    "untrained-wav2vec2": 2,
    "untrained-electra": 2,
    "use-multilingual": 1,
}
"""Layers of the built-in encoders; hidden state 0 is the input of the first."""

BUILT_IN_SIZES: Mapping[str, tuple[int, int, int]] = {
    "smart-turn": (2, 6, 1536),
    "untrained-wav2vec2": (2, 4, 256),
}
"""Layers, attention heads and feed-forward units of those that can be slimmed."""
SLIMMABLE = frozenset(
    {"wav2vec2", "hubert", "data2vec-audio", "unispeech", "unispeech-sat", WHISPER}
)
"""Types whose heads and feed-forward units do not depend on each other."""


def reader_of(model_type: str | None) -> Reader:
    """How a speech encoder of this type reads a wave.

    A type that is not known is taken for the wav2vec2 family, whose class refuses what is not
    built like it.
    """
    return _READERS.get(model_type or "", "wav2vec2")


def layer_problem(index: int, layers: int) -> str | None:
    """What is wrong with the index of a hidden state of an encoder; None if it has that state.

    Args:
        layers: of the encoder.
    """
    if -layers - 1 <= index <= layers:
        return None
    return (
        f"{index} is not a layer of this encoder; it has {layers} layers, so use 0 to {layers} or "
        f"-1 to {-layers - 1}"
    )
