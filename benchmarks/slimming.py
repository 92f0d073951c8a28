"""What pruning changes: states of a slimmed smart-turn beside those of the whole layers, untrained.

    python benchmarks/slimming.py FOLDER [--every 80]

A row a size: parameters, and the mean cosine of the states with those of the whole layer, both less
the mean of the whole layer's states over time and recordings (a mean that all states share would
raise the cosine of anything). FOLDER holds recordings; every 80th is read, cut after 4 seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from multistill.config import SpeechEncoderConfig
from multistill.encoders.registry import resolve_speech
from multistill.encoders.slim import EncoderSizes
from multistill.encoders.source import EncoderSource
from multistill.encoders.stored_inputs import encode_wave
from multistill.encoders.trainable import TrainableEncoder
from multistill.features.decode import decode

SIZES = ((4, None), (3, None), (2, None), (None, 768), (None, 512), (None, 256), (4, 512))


def states(encoder: TrainableEncoder, waves: list[Tensor]) -> Tensor:
    """[frames of all recordings, D]"""
    encoder.eval()
    with torch.inference_mode():
        rows = [encoder(w[None], torch.ones(1, len(w), dtype=torch.bool))[0][0] for w in waves]
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=80)
    given = parser.parse_args()
    config = SpeechEncoderConfig.model_validate({"model": "smart-turn", "train": "full"})
    source = EncoderSource("speech", config, resolve_speech(config))
    files = sorted(given.folder.rglob("*.wav"))[:: given.every]
    decoded = [decode(file, max_seconds=4, long_clips="cut").samples for file in files]
    waves = [torch.from_numpy(encode_wave(samples)) for samples in decoded]
    print("| layers | heads | feed-forward units | parameters | cosine |\n|---|---|---|---|---|")
    for layers in (1, 2):
        whole = states(source.slimmed(EncoderSizes(layers)).load(), waves)
        for heads, feedforward in SIZES:
            slim = source.slimmed(EncoderSizes(layers, heads, feedforward)).load()
            count = sum(parameter.numel() for parameter in slim.parameters())
            mean = whole.mean(0)
            cosine = float(cosine_similarity(states(slim, waves) - mean, whole - mean).mean())
            kept = f"| {layers} | {heads or 'all'} | {feedforward or 'all'} | {count:,} "
            print(f"{kept}| {cosine:.2f} |")


if __name__ == "__main__":
    main()
