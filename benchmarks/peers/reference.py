"""Inputs that are made once, and the agreement of states: encoder, reference, what peers stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from spec import ENCODER, SAMPLE_RATE, SEED, Clip

Array = np.ndarray


def save_encoder(folder: Path) -> None:
    """A wav2vec2 with random weights in Hugging Face's format."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(SEED)
    Wav2Vec2Model(Wav2Vec2Config(**ENCODER)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)


def save_reference(encoder: Path, rows: list[Clip], path: Path) -> None:
    """States of each clip alone, as transformers computes them: float32 [T, D] by name."""
    from transformers import AutoFeatureExtractor, AutoModel

    extractor = AutoFeatureExtractor.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder).eval()
    found = {}
    for clip in rows:
        wave, _ = soundfile.read(clip.path, dtype="float32")
        inputs = extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode():
            found[clip.name] = model(**inputs).last_hidden_state[0].numpy()
    np.savez(path, **found)


def cosine(first: Array, second: Array) -> float:
    """Of two arrays of equal shape, as vectors."""
    a, b = (np.asarray(values, np.float64).ravel() for values in (first, second))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def agreement(states: dict[str, Array], path: Path) -> dict[str, float | str]:
    """Smallest cosine to the reference over its clips: of all states, or of means over time.

    Args:
        path: what `save_reference` wrote.
    """
    values, compared = [], "states"
    reference = np.load(path)
    for name in reference.files:
        expected = reference[name]
        found = states[name]
        if found.ndim == 1:
            compared, expected = "means over time", expected.mean(axis=0)
        if found.shape != expected.shape:
            raise SystemExit(f"{name}: states of shape {found.shape}, not {expected.shape}")
        values.append(cosine(found, expected))
    return {"clips": len(states), "cosine": min(values), "compared": compared}


def read_states(kind: str, folder: Path, names: list[str]) -> dict[str, Array]:
    """What a peer stored of each clip: [T, D], or [D] where it keeps the mean over time.

    Args:
        kind: `files` (.npy), `datasets`, `tensors` (.pt) or `nkululeko`.
        folder: of the round.
    """
    states = folder / "states"
    if kind == "files":
        return {name: np.load(states / f"{name}.npy") for name in names}
    if kind == "tensors":
        return {
            name: torch.load(states / f"{name}.pt", weights_only=True).numpy() for name in names
        }
    if kind == "datasets":
        import pyarrow as pa

        found = {}
        for path in sorted(states.glob("*.arrow")):
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
                for row in table.select(["utterance_id", "states"]).to_pylist():
                    found[row["utterance_id"]] = np.asarray(row["states"], np.float32)
        return found
    import pandas as pd

    # Written by this benchmark's own run a moment ago.
    [path] = (folder / "run" / "store").glob("*_wav2vec2_all.pkl")
    table = pd.read_pickle(path)
    files = table.index.get_level_values(0)
    values = table.to_numpy(np.float32)
    return {Path(file).stem: row for file, row in zip(files, values, strict=True)}
