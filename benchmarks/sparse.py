"""What MESM computes against what it keeps: theoretical multiply-accumulates and measured time.

    python benchmarks/sparse.py [--preset paper-mesm] [--audio FOLDER] [--model FOLDER] [--clips 8]

Of every `top_p`: the share of points that each of the three stages computes, multiply-accumulates
of a clip as a sparse implementation would have them, their share of the dense twin's, and the
median processor time of a clip here, on one thread, where sparse convolutions are dense ones
between masks. The first row is FE2E. Clips are the first `--clips` WAV files of a folder, three
seconds of each, by default noise; the network is untrained, or that of a trained `--model`, whose
text is the learnt state of a clip without text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rows import add_row
from torch import Tensor

from multistill.audio import SAMPLE_RATE
from multistill.audio.reading import read_sound
from multistill.encoders.speech import LogMel
from multistill.models.build import build
from multistill.models.end_to_end import EndToEnd
from multistill.models.files import load_model
from multistill.models.presets import resolve
from multistill.models.sparse import TextGuidedSelection, multiply_accumulates

SECONDS = 3.0
TEXT_DIM = 768
P = (1.0, 0.9, 0.8, 0.7, 0.5)


def waves(folder: Path | None, clips: int) -> list[np.ndarray]:
    """`SECONDS` of each clip; shorter ones are whole."""
    length = round(SECONDS * SAMPLE_RATE)
    if folder is None:
        noise = np.random.default_rng(0).standard_normal((clips, length))
        return list(0.1 * noise.astype(np.float32))
    files = sorted(folder.rglob("*.wav"))[:clips]
    return [read_sound(str(file)).samples[:length] for file in files]


def network(preset: str, folder: Path | None, p: float | None) -> tuple[EndToEnd, int]:
    """A MESM with another `top_p`, or its dense twin (None); and its bands."""
    torch.manual_seed(0)
    if folder is None:
        bands = 128
        source = build(resolve(preset, {}), bands, TEXT_DIM)
    else:
        loaded = load_model(folder)
        source = getattr(loaded, "head", loaded)
        bands = source.audio_dim
    assert isinstance(source, EndToEnd)
    changed = {"network": "fe2e", "top_p": 1.0, "selection_gradient": "straight-through"}
    spec = replace(source.spec, **(changed if p is None else {"top_p": p}))
    model = EndToEnd(spec, bands, source.text_dim)
    model.load_state_dict(source.state_dict(), strict=p is not None)
    return model.eval(), bands


def kept_shares(model: EndToEnd, inputs: Sequence[Tensor]) -> list[float]:
    """Share of the points before each selection of the whole map that it keeps."""
    shares: list[list[float]] = []

    def record(module: torch.nn.Module, _: object, output: tuple[Tensor, Tensor]) -> None:
        shares[-1].append(float(output[1].float().mean()))

    selections = [m for m in model.modules() if isinstance(m, TextGuidedSelection)]
    hooks = [module.register_forward_hook(record) for module in selections]
    for states in inputs:
        shares.append([])
        model(states, None, None, None)
    for hook in hooks:
        hook.remove()
    return np.mean(shares, axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="paper-mesm")
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--clips", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    clips = waves(given.audio, given.clips)
    print("| | points in stage 1, 2, 3 | M MACs of a clip | of dense | ms of a clip |")
    print("| --- | --- | --- | --- | --- |")
    reference = 0.0
    for p in (None, *P):
        model, bands = network(given.preset, given.model, p)
        inputs = [torch.from_numpy(each)[None] for each in LogMel(bands=bands).encode(clips)]
        with torch.inference_mode():
            counts, times = [], []
            for states in inputs:
                counts.append(multiply_accumulates(model, states))
                start = time.process_time()
                model(states)
                times.append(1000 * (time.process_time() - start))
            shares = kept_shares(model, inputs)
        dense, active = np.mean(counts, axis=0) / 1e6
        reference = reference or dense
        points = ", ".join(f"{share:.2f}" for share in shares) or "all"
        title = "FE2E" if p is None else f"MESM, p = {p:g}"
        figures = {
            "network": title,
            "preset": given.preset,
            "points": [round(share, 3) for share in shares],
            "mega_macs": round(float(dense if p is None else active), 1),
            "of_dense": round(float((dense if p is None else active) / reference), 3),
            "clip_ms": round(statistics.median(times), 2),
        }
        add_row("sparse", figures)
        print(
            f"| {title} | {points} | {dense if p is None else active:.0f} "
            f"| {(dense if p is None else active) / reference:.2f} "
            f"| {statistics.median(times):.0f} |"
        )


if __name__ == "__main__":
    main()
