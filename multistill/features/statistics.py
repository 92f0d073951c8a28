"""Mean and deviation of the encoder states of the training part, for input standardisation.

    statistics.safetensors      audio_mean, audio_deviation [audio_dim], text_* [text_dim];
                                audio_clip_*, text_clip_*: of each utterance's `clip_statistics`
    statistics.json             encoders, scaling, counts, clips

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

from multistill.damaged import read_table
from multistill.encoders.base import Scaling
from multistill.encoders.source import EncoderSource, Section
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.initial_states import InitialStates, drawn_clips, with_initial_states
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

    def part(self, values: slice) -> Moments:
        """The moments of a part of the states."""
        return Moments(self.mean[values], self.deviation[values], self.count)

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
        audio, text: over all states.
        audio_clips, text_clips: over the `clip_statistics` of the utterances.
        scaling: per encoder, how its states are to be scaled.
        encoders: per encoder, the name and revision that the states are of.
        clips: number of utterances.
        speech_parts: of several speech encoders side by side, the number of values of each and how
            they are to be scaled.
    """

    audio: Moments
    text: Moments
    audio_clips: Moments
    text_clips: Moments
    scaling: Mapping[Literal["speech", "text"], Scaling]
    encoders: Mapping[str, Any]
    clips: int
    speech_parts: Sequence[tuple[int, Scaling]] = ()

    def scaled(self, modality: str, scaling: str) -> tuple[FloatArray, FloatArray]:
        """Centre and scale of `audio` or `text`; `encoder` is what the encoder asks for.

        `global` is one mean and deviation per speech encoder: their units differ.
        """
        moments = self.audio if modality == "audio" else self.text
        of_encoder = self.scaling["speech" if modality == "audio" else "text"]
        parts = [(len(moments.mean), of_encoder)]
        if modality == "audio" and self.speech_parts:
            parts = list(self.speech_parts)
        centres, scales, start = [], [], 0
        for width, own in parts:
            kind = own if scaling == "encoder" else scaling
            part = moments.part(slice(start, start + width))
            centre, scale = part.scaled("global" if kind == "global" else "dimension")
            centres.append(centre)
            scales.append(scale)
            start += width
        return np.concatenate(centres), np.concatenate(scales)

    def scaled_clips(self, modality: str) -> tuple[FloatArray, FloatArray]:
        """Centre and scale of the `clip_statistics` of `audio` or `text`, per dimension."""
        moments = self.audio_clips if modality == "audio" else self.text_clips
        return moments.scaled("dimension")


def training_statistics(
    store: FeatureStore,
    ids: Sequence[str],
    encoders: Mapping[Section, EncoderSource] | None = None,
) -> StateStatistics:
    """Moments of the states of these utterances, in one pass over the store.

    Utterances without features (quarantined clips) are skipped. Of an encoder that is trained,
    the states are those before training, of some of the utterances (`initial_states`).

    Args:
        encoders: as of `with_initial_states`.

    Raises:
        MultistillError: none of them has features.
    """
    present = [name for name, there in zip(ids, store.has(ids), strict=True) if there]
    if not present:
        raise MultistillError(
            f"no training utterance has features in {store.folder}; see its quarantine.parquet"
        )
    read = with_initial_states(store, encoders)
    if isinstance(read, InitialStates):
        present = drawn_clips(present)
    ordered = store.in_file_order(present)  # each modality is read from start to end, once
    audio, audio_clips = moments_of("audio", read.each("audio", ordered), read.audio_dim)
    text, text_clips = moments_of("text", read.each("text", ordered), read.text_dim)
    return StateStatistics(
        audio=audio,
        text=text,
        audio_clips=audio_clips,
        text_clips=text_clips,
        scaling={
            kind: store.info.get(kind, {}).get("scaling", "dimension")
            for kind in ("speech", "text")
        },
        encoders=encoders_of(store),
        clips=len(present),
        speech_parts=[
            (part["dim"], part["scaling"]) for part in store.info.get("speech", {}).get("parts", ())
        ],
    )


def encoders_of(store: FeatureStore) -> dict[str, Any]:
    """What the states of a store are of: name and revision of both encoders."""
    return {
        kind: {key: store.info.get(kind, {}).get(key) for key in ("name", "revision")}
        for kind in ("speech", "text")
    }


def clip_width(modality: str, dim: int) -> int:
    """Length of `clip_statistics` for states of `dim` values."""
    return (3 if modality == "audio" else 1) * dim + 1


def clip_statistics(modality: str, states: DoubleArray) -> DoubleArray:
    """What the linear path of a head reads of one utterance (`multistill.models.wide`).

    Args:
        states: [length, dim], length at least 1.

    Returns:
        audio: mean, deviation and root mean square change between neighbours [3 dim]; text: the
        mean [dim]; of both the logarithm of one plus the length.
    """
    mean = states.mean(axis=0)
    parts = [mean]
    if modality == "audio":
        changes = np.diff(states, axis=0) if len(states) > 1 else np.zeros((1, len(mean)))
        parts += [states.std(axis=0), np.sqrt(np.square(changes).mean(axis=0))]
    return np.concatenate([*parts, [np.log1p(len(states))]])


class _Accumulator:
    """Moments of rows that arrive in parts, combined as by Chan, Golub and LeVeque (1983).

    That loses no digits where a mean is much larger than its deviation.
    """

    def __init__(self, dim: int) -> None:
        self._count, self._mean, self._squares = 0, np.zeros(dim), np.zeros(dim)

    def add(self, rows: DoubleArray) -> bool:
        """Add [n, dim]; False, and nothing is added, if they are not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            mean = rows.mean(axis=0)
            squares = np.square(rows - mean).sum(axis=0)
        if not np.isfinite(squares).all():
            return False
        total = self._count + len(rows)
        change = mean - self._mean
        self._squares += squares + change**2 * (self._count * len(rows) / total)
        self._mean += change * (len(rows) / total)
        self._count = total
        return True

    def result(self) -> Moments:
        return Moments(self._mean, np.sqrt(self._squares / max(self._count, 1)), self._count)


def moments_of(modality: str, sequences: Iterable[AnyArray], dim: int) -> tuple[Moments, Moments]:
    """Moments over all states of sequences [length, dim], and over their `clip_statistics`.

    The sequences are not kept. Those with NaN or infinite states are left out: one of them would
    turn every input of the head into NaN, and the training could no longer tell which utterance
    it was. Empty ones (no text) have no statistics.
    """
    states, clips = _Accumulator(dim), _Accumulator(clip_width(modality, dim))
    for sequence in sequences:
        if not len(sequence):
            continue
        rows = np.asarray(sequence, dtype=np.float64)
        if states.add(rows):
            clips.add(clip_statistics(modality, rows)[None])
    return states.result(), clips.result()


def compute_statistics(manifest: Path, features: Path, out: Path) -> dict[str, Any]:
    """Statistics of the states of a manifest's training utterances, written to `out`.

    Args:
        manifest: Parquet with `utterance_id` and `split`.
        features: folder of the feature store.

    Returns:
        JSON summary: `clips`, `frames`, `tokens`.
    """
    rows = read_table(manifest, columns=["utterance_id"], filters=[("split", "=", "train")])
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

    parts = {
        "audio": statistics.audio,
        "text": statistics.text,
        "audio_clip": statistics.audio_clips,
        "text_clip": statistics.text_clips,
    }
    tensors = {
        f"{name}_{key}": value
        for name, part in parts.items()
        for key, value in (("mean", part.mean), ("deviation", part.deviation))
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TENSORS, save(tensors))
    info = {
        "clips": statistics.clips,
        "counts": {name: part.count for name, part in parts.items()},
        "scaling": dict(statistics.scaling),
        "encoders": dict(statistics.encoders),
        "speech_parts": [list(part) for part in statistics.speech_parts],
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
        audio, text, audio_clips, text_clips = (
            Moments(tensors[f"{name}_mean"], tensors[f"{name}_deviation"], int(count))
            for name in ("audio", "text", "audio_clip", "text_clip")
            for count in (info["counts"][name],)
        )
        parts = [(int(width), scaling) for width, scaling in info["speech_parts"]]
        kinds = {*info["scaling"].values(), *(scaling for _, scaling in parts)}
        if not kinds <= {*get_args(Scaling)}:
            raise ValueError("unknown scaling")
        return StateStatistics(
            audio=audio,
            text=text,
            audio_clips=audio_clips,
            text_clips=text_clips,
            scaling=info["scaling"],
            encoders=info["encoders"],
            clips=int(info["clips"]),
            speech_parts=parts,
        )
    except (OSError, ValueError, TypeError, AttributeError, LookupError, SafetensorError) as error:
        raise MultistillError(
            f"the statistics in {folder} are missing or damaged ({error}); remove the folder and "
            "run the job again"
        ) from error
