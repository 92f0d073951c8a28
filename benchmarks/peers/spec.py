"""What every peer gets: recordings and their parts, network, budget and space. Standard library.

EMO-DB (Burkhardt et al. 2005): `wav/SSTTTEv.wav`, speaker SS, emotion E. Speakers are kept apart.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLASSES = {"W": "anger", "F": "happiness", "T": "sadness", "N": "neutral"}
"""The four emotions that the public part of EMO-DB has, by the letter of the file name."""
TEST_SPEAKERS = frozenset({"03", "08", "09"})
VALID_SPEAKERS = frozenset({"10", "11"})
SEED = 1024
SAMPLE_RATE = 16_000

ENCODER = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "conv_dim": [256] * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
"""Of `transformers.Wav2Vec2Config`; random weights, since speed does not depend on them."""
ENCODER_BATCH = 8
"""Clips in a batch of the peers that batch by number."""

HEAD = {"preset": "small-audio-student", "standardize": "none"}
"""The same network for all; constants of the data inside it are left out."""
BATCH = 16
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
"""AdamW at a constant rate; multistill warms up and decays, as it always does."""
HEAD_EPOCHS = 60

TRIALS = 48
TRIAL_EPOCHS = 12
GRACE_EPOCHS = 3
REDUCTION = 3
"""Of ASHA, in the systems that stop trials."""
LEARNING_RATES = (1e-4, 1e-2)
WEIGHT_DECAYS = (1e-3, 1.0)
DROPOUTS = (0.0, 0.8)
"""The space: the first two on a logarithmic scale, the last before the classifier."""

OPENSMILE_SET = "eGeMAPSv02"
SPEAKERS = 10
SVM_C = 0.01
"""Of nkululeko's SVM; multistill chooses it on two speakers of each fold's training part."""


@dataclass(frozen=True)
class Clip:
    name: str
    path: str
    label: str
    speaker: str
    part: str


def part_of(speaker: str) -> str:
    if speaker in TEST_SPEAKERS:
        return "test"
    return "valid" if speaker in VALID_SPEAKERS else "train"


def clips(emodb: Path, limit: int | None = None) -> list[Clip]:
    """The recordings of the four emotions, by name; `limit` takes evenly spaced ones."""
    found = [
        Clip(path.stem, str(path), CLASSES[path.stem[5]], path.stem[:2], part_of(path.stem[:2]))
        for path in sorted((emodb / "wav").glob("*.wav"))
        if path.stem[5] in CLASSES
    ]
    if not found:
        raise SystemExit(f"{emodb}/wav has no recordings of EMO-DB; give the folder that holds wav")
    return found if limit is None else found[:: max(1, len(found) // limit)][:limit]


def write_corpus(rows: list[Clip], path: Path) -> None:
    """The table that all peers read."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["utterance_id", "audio_path", "text", "label", "speaker", "split"])
        for clip in rows:
            text = clip.name[2:5]
            writer.writerow([clip.name, clip.path, text, clip.label, clip.speaker, clip.part])


def read_corpus(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def settings(path: Path) -> dict[str, Any]:
    """What a driver is told of this round."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
