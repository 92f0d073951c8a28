"""Mean and deviation of the encoder states of the training part, for input standardisation.

    statistics.safetensors      audio_mean, audio_deviation [audio_dim], text_* [text_dim]
    statistics.json             encoders, frames, tokens, clips

The states of an encoder are far from standardised: a dimension's mean is often several times its
deviation, and a head first has to learn to cancel that. Only training utterances are read, so
nothing of validation or test enters a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.parquet as pq

from multistill.encoders.base import Scaling
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.store import FeatureStore
from multistill.typing import AnyArray, DoubleArray, FloatArray
from multistill.workspace import read_json, write_atomic, write_json

TENSORS = "statistics.safetensors"
INFO = "statistics.json"

ROUNDING = 2.0**-10
"""Relative rounding error of float16 states: a dimension that varies less about its mean is
constant. It is centred and not scaled."""
CONSTANT = 1e-5
"""So is one whose deviation is below this share of the mean deviation of all dimensions."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of states, per dimension.

    Attributes:
        mean, deviation: float64 [dim].
        count: number of states.
    """

    mean: DoubleArray
    deviation: DoubleArray
    count: int

    def scaled(self, scaling: Scaling) -> tuple[FloatArray, FloatArray]:
        """Centre and scale float32 [dim]: (state - centre) / scale is standardised."""
        mean, deviation = self.mean, self.deviation
        if scaling == "global" and len(mean):
            variance = float(np.mean(deviation**2 + mean**2) - np.mean(mean) ** 2)
            mean = np.full_like(mean, np.mean(mean))
            deviation = np.full_like(deviation, np.sqrt(max(variance, 0.0)))
        floor = np.maximum(ROUNDING * np.abs(mean), CONSTANT * deviation.sum() / max(1, len(mean)))
        usable = deviation > floor
        scale = np.where(usable, deviation, 1.0)
        return mean.astype(np.float32), scale.astype(np.float32)


@dataclass(frozen=True)
class StateStatistics:
    """Moments of both encoders' states over the training utterances.

    Attributes:
        scaling: per encoder, how its states are to be scaled.
        encoders: per encoder, the name and revision that the states are of.
        clips: number of utterances.
    """

    audio: Moments
    text: Moments
    scaling: Mapping[Literal["speech", "text"], Scaling]
    encoders: Mapping[str, Any]
    clips: int

    def scaled(self, modality: str, scaling: str) -> tuple[FloatArray, FloatArray]:
        """Centre and scale of `audio` or `text`; `encoder` is what the encoder asks for."""
        moments = self.audio if modality == "audio" else self.text
        if scaling == "encoder":
            scaling = self.scaling["speech" if modality == "audio" else "text"]
        return moments.scaled("global" if scaling == "global" else "dimension")


def training_statistics(store: FeatureStore, ids: Sequence[str]) -> StateStatistics:
    """Moments of the states of these utterances, in one pass over the store.

    Utterances without features (quarantined clips) are skipped.

    Raises:
        MultistillError: none of them has features.
    """
    present = [name for name in ids if name in store]
    if not present:
        raise MultistillError(
            f"no training utterance has features in {store.folder}; see its quarantine.parquet"
        )
    # In the order of the files, which are read once from start to end.
    order = np.argsort(store.rows(present), kind="stable")
    ordered = [present[position] for position in order]
    return StateStatistics(
        audio=moments((store.audio(name) for name in ordered), store.audio_dim),
        text=moments((store.text(name) for name in ordered), store.text_dim),
        scaling={
            kind: store.info.get(kind, {}).get("scaling", "dimension")
            for kind in ("speech", "text")
        },
        encoders=encoders_of(store),
        clips=len(present),
    )


def encoders_of(store: FeatureStore) -> dict[str, Any]:
    """What the states of a store are of: name and revision of both encoders."""
    return {
        kind: {key: store.info.get(kind, {}).get(key) for key in ("name", "revision")}
        for kind in ("speech", "text")
    }


def moments(sequences: Iterable[AnyArray], dim: int) -> Moments:
    """Moments over all positions of sequences [length, dim], without keeping them.

    Sequences with NaN or infinite states are left out: one of them would turn every input of the
    head into NaN, and the training could no longer tell which utterance it was.

    Means and squared deviations are combined as by Chan, Golub and LeVeque (1983), which loses
    no digits where a mean is much larger than its deviation.
    """
    count, mean, squares = 0, np.zeros(dim), np.zeros(dim)
    for sequence in sequences:
        if not len(sequence):
            continue
        states = np.asarray(sequence, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            part_mean = states.mean(axis=0)
            part_squares = np.square(states - part_mean).sum(axis=0)
        if not np.isfinite(part_squares).all():
            continue
        total = count + len(states)
        change = part_mean - mean
        squares += part_squares + change**2 * (count * len(states) / total)
        mean += change * (len(states) / total)
        count = total
    return Moments(mean, np.sqrt(squares / max(count, 1)), count)


def compute_statistics(manifest: Path, features: Path, out: Path) -> dict[str, Any]:
    """Statistics of the states of a manifest's training utterances, written to `out`.

    Args:
        manifest: Parquet with `utterance_id` and `split`.
        features: folder of the feature store.

    Returns:
        JSON summary: `clips`, `frames`, `tokens`.
    """
    rows = pq.read_table(manifest, columns=["utterance_id"], filters=[("split", "=", "train")])
    statistics = training_statistics(open_store(features), rows["utterance_id"].to_pylist())
    write_statistics(statistics, out)
    return {
        "clips": statistics.clips,
        "frames": statistics.audio.count,
        "tokens": statistics.text.count,
    }


def write_statistics(statistics: StateStatistics, folder: Path) -> None:
    """Write `statistics.safetensors`, then `statistics.json`."""
    from safetensors.numpy import save

    tensors = {
        f"{name}_{key}": value
        for name, part in (("audio", statistics.audio), ("text", statistics.text))
        for key, value in (("mean", part.mean), ("deviation", part.deviation))
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TENSORS, save(tensors))
    info = {
        "clips": statistics.clips,
        "frames": statistics.audio.count,
        "tokens": statistics.text.count,
        "scaling": dict(statistics.scaling),
        "encoders": dict(statistics.encoders),
    }
    write_json(folder / INFO, info)


def read_statistics(folder: Path) -> StateStatistics:
    """Inverse of `write_statistics`.

    Raises:
        MultistillError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        info = read_json(folder / INFO)
        tensors = load((folder / TENSORS).read_bytes())
        audio = Moments(tensors["audio_mean"], tensors["audio_deviation"], int(info["frames"]))
        text = Moments(tensors["text_mean"], tensors["text_deviation"], int(info["tokens"]))
        if not {*info["scaling"].values()} <= {*get_args(Scaling)}:
            raise ValueError("unknown scaling")
        return StateStatistics(audio, text, info["scaling"], info["encoders"], int(info["clips"]))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise MultistillError(
            f"the statistics in {folder} are missing or damaged ({error}); remove the folder and "
            "run the job again"
        ) from error
