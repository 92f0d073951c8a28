"""Seconds per epoch of training the top layers of a speech encoder from stored hidden states.

    python benchmarks/finetune.py [--layers 24 --top 4 --width 128 --clips 32 --seconds 4]

The same top layers of the same random wav2vec2 are trained twice with a linear head, from the same
start on the same batches: from the hidden state below them (`train: last-K`), and from waves
through the whole encoder with the rest frozen. Dropout is off, so both have to end with the same
weights. Beside them stands an epoch in which every layer is trained (`train: full`).

On a CPU, seconds are those of the processor, which other processes do not change.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import add_row
from torch import Tensor, nn

from multistill.config import SpeechEncoderConfig
from multistill.encoders.registry import load_speech
from multistill.encoders.stored_inputs import decode_waves, encode_wave
from multistill.encoders.trainable import TrainableEncoder, load_trainable
from multistill.features.decode import normalize

CLASSES = 7


def save_model(folder: Path, layers: int, width: int) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    off = dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0
    )
    settings = Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        # The convolutions of the large models are half as wide as their layers.
        conv_dim=(width // 2,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        num_conv_pos_embedding_groups=max(1, width // 64),
        **off,
    )
    torch.manual_seed(0)
    Wav2Vec2Model(settings).save_pretrained(folder)


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([len(row) for row in rows])
    batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return batch, torch.arange(batch.shape[1]) < sizes[:, None]


def batches(rows: list[Tensor], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    labels = torch.arange(len(rows)) % CLASSES
    for start in range(0, len(rows), size):
        yield (*padded(rows[start : start + size]), labels[start : start + size])


def train(
    encoder: TrainableEncoder, rows: list[Tensor], batch: int, epochs: int, device: str
) -> tuple[float, dict[str, Tensor], float]:
    """Seconds of the fastest epoch, trained weights, and the loss of the last epoch."""

    def clock() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    torch.manual_seed(1)
    encoder = encoder.to(device).train()
    head = nn.Linear(encoder.dim, CLASSES).to(device)
    parameters = [each for each in encoder.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD([*parameters, *head.parameters()], lr=0.1)
    seconds, total = [], 0.0
    for _ in range(epochs):
        start, total = clock(), 0.0
        for stored, mask, labels in batches(rows, batch):
            states, kept = encoder(stored.to(device), mask.to(device))
            pooled = states.sum(dim=1) / kept.sum(dim=1, keepdim=True)
            loss = nn.functional.cross_entropy(head(pooled), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds.append(clock() - start)
    weights = {
        name: each.detach().cpu() for name, each in encoder.named_parameters() if each.requires_grad
    }
    return min(seconds), weights, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--top", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    lengths = random.integers(int(8_000 * options.seconds), int(24_000 * options.seconds), 256)
    clips = [
        encode_wave(normalize(random.standard_normal(n).astype(np.float32)))
        for n in lengths[: options.clips]
    ]
    waves = [torch.from_numpy(clip) for clip in clips]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options.layers, options.width)

        def load(kind: str) -> tuple[SpeechEncoderConfig, TrainableEncoder]:
            config = SpeechEncoderConfig.model_validate({"model": folder, "train": kind})
            return config, load_trainable("speech", config, None)

        config, top = load(f"last-{options.top}")
        initial = {name: each.clone() for name, each in top.trained_state().items()}
        below = load_speech(config, None, torch.device("cpu"))
        start = time.process_time()
        states = []
        for wave in waves:
            decoded, samples = decode_waves(wave[None], torch.ones(1, len(wave)).bool(), 400)
            [state] = below.encode([decoded[0, : int(samples)].numpy()])
            states.append(torch.from_numpy(np.ascontiguousarray(state)))
        encoding = time.process_time() - start
        arguments: tuple[Any, ...] = (options.batch, options.epochs, options.device)
        top_seconds, top_weights, top_loss = train(top, states, *arguments)
        _, whole = load("full")
        trained = {name for group in whole.layer_groups()[: options.top] for name in group}
        for name, parameter in whole.named_parameters():
            parameter.requires_grad_(name in trained)
        frozen_seconds, frozen_weights, frozen_loss = train(whole, waves, *arguments)
        full_seconds, _, _ = train(load("full")[1], waves, *arguments)
    difference = max(
        float((one - other).abs().max())
        for one, other in zip(top_weights.values(), frozen_weights.values(), strict=True)
    )
    change = max(float((top_weights[name] - initial[name]).abs().max()) for name in initial)
    figures = {
        "top_layers_seconds": round(top_seconds, 3),
        "rest_frozen_seconds": round(frozen_seconds, 3),
        "full_seconds": round(full_seconds, 3),
        "encoding_once_seconds": round(encoding, 3),
        "faster_than_rest_frozen": round(frozen_seconds / top_seconds, 2),
        "faster_than_full": round(full_seconds / top_seconds, 2),
        "largest_difference_of_weights": difference,
        "largest_change_by_training": change,
        "losses": [round(top_loss, 6), round(frozen_loss, 6)],
        **vars(options),
    }
    print(json.dumps(add_row("finetune", figures), indent=2))


if __name__ == "__main__":
    main()
