"""Tiny encoders of every kind that can be trained, with the dropout of published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WIDTH, LAYERS = 32, 4
SPEECH = (
    "wav2vec2",
    "wav2vec2-group",
    "hubert",
    "wavlm",
    "wavlm-group",
    "data2vec-audio",
    "wav2vec2-conformer",
    "unispeech",
)
TEXT = ("bert", "roberta", "electra")


def save_speech_model(folder: Path, kind: str) -> Path:
    """Save a model of the wav2vec2 family with random weights."""
    import transformers as t

    model_type, _, norm = kind.partition("-group")
    stable = kind == f"{model_type}{norm}"
    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "mask_time_prob": 0.5,
        "layerdrop": 0.5,
        "hidden_dropout": 0.1,
    }
    if model_type == "data2vec-audio":
        shape["num_conv_pos_embeddings"] = 2
        shape["conv_pos_kernel_size"] = 3
    else:
        shape["feat_extract_norm"] = "layer" if stable else "group"
        if model_type != "wav2vec2-conformer":
            shape["do_stable_layer_norm"] = stable
    classes: dict[str, tuple[Any, Any]] = {
        "wav2vec2": (t.Wav2Vec2Config, t.Wav2Vec2Model),
        "hubert": (t.HubertConfig, t.HubertModel),
        "wavlm": (t.WavLMConfig, t.WavLMModel),
        "data2vec-audio": (t.Data2VecAudioConfig, t.Data2VecAudioModel),
        "wav2vec2-conformer": (t.Wav2Vec2ConformerConfig, t.Wav2Vec2ConformerModel),
        "unispeech": (t.UniSpeechConfig, t.UniSpeechModel),
    }
    settings, model = classes[model_type]
    _save(model, settings(**shape), folder)
    return folder


def save_text_model(folder: Path, kind: str) -> Path:
    """Save a BERT-like model with random weights and a WordPiece tokenizer."""
    import transformers as t

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day", "bad", "night", "##s"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = t.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False)
    shape = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    classes: dict[str, tuple[Any, Any]] = {
        "bert": (t.BertConfig, t.BertModel),
        "roberta": (t.RobertaConfig, t.RobertaModel),
        "electra": (t.ElectraConfig, t.ElectraModel),
    }
    settings, model = classes[kind]
    if kind == "electra":
        shape["embedding_size"] = 16
    _save(model, settings(**shape), folder)
    tokenizer.save_pretrained(folder)
    return folder


def whisper_encoder(positions: int = 100, layers: int = LAYERS) -> Any:
    """A Whisper encoder with random weights."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    settings = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=layers,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        num_mel_bins=80,
        max_source_positions=positions,
        dropout=0.1,
    )
    return _spread(WhisperEncoder(settings))


def _save(model: Any, settings: Any, folder: Path) -> None:
    torch.manual_seed(0)
    _spread(model(settings)).save_pretrained(folder)


def _spread(model: Any) -> Any:
    """Weights at which layers, masks and positions matter, which initial ones are too small for."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                parameter.mul_(3.0)
            elif parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
