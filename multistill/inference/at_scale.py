"""Predictions of many clips: encoded on Ray Data by the features stage, in shards that last.

A run that is killed costs the shards in progress: the same command finds the others beside its
result, as long as clips and encoders are the same. They are removed when the result is there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import opened, read_header
from multistill.cluster import session
from multistill.config import ResourcesConfig
from multistill.corpora.manifest import MANIFEST
from multistill.corpora.text import control_characters, tidy
from multistill.damaged import read_table
from multistill.errors import UsageError
from multistill.features.encode import encode
from multistill.features.identity import features_identity
from multistill.features.store import QUARANTINE, FeatureStore
from multistill.inference.find_clips import NamedClip
from multistill.inference.predictor import Prediction, Predictor
from multistill.tracking.logger import RunLogger
from multistill.workspace import fingerprint

CLIPS_PER_BATCH = 256
_SURROGATES = re.compile("[\ud800-\udfff]")
FEATURES = "features"

Results = list[tuple[str, Prediction | str]]
"""Ids, each with its prediction or the reason why there is none."""


def why_not(predictor: Predictor) -> str | None:
    """Why clips cannot be encoded on Ray for a model; None if they can be."""
    if predictor.modality == "text":
        return "it reads text alone, and the features stage encodes recordings"
    if predictor.partial:
        return "it reads one of several speech encoders, and the features stage runs all of them"
    return None


def predict_at_scale(
    predictor: Predictor,
    clips: Sequence[NamedClip],
    folder: Path,
    only: Sequence[str] | None,
    unsure_below: float | None,
    logger: RunLogger,
) -> Iterator[Results]:
    """Predict clips in any number, some at a time; those without a recording come last.

    Args:
        folder: where shards are kept until all clips are predicted.

    Raises:
        UsageError: the model cannot be used so (`why_not`).
        MultistillError: Ray does not start, or no clip could be encoded.
    """
    if reason := why_not(predictor):
        raise UsageError(f"--ray: not with this model, {reason}; use --no-ray")
    # A clip that fails is a row of the result, however many do.
    config = predictor.features.model_copy(update={"max_quarantined": 1.0})
    home = folder / fingerprint("predict", 1, features_identity(config), {})
    encoded = [clip for clip in clips if _is_file(clip)]
    if encoded:
        _write_manifest(encoded, predictor.modality == "multimodal", home / MANIFEST)
        with session.start(ResourcesConfig(), log=logger.info):
            encode(home / MANIFEST, config, home / FEATURES, logger)
        yield from _of_store(predictor, home / FEATURES, only, unsure_below)
    rest = [clip for clip in clips if not _is_file(clip)]
    for start in range(0, len(rest), CLIPS_PER_BATCH):
        batch = rest[start : start + CLIPS_PER_BATCH]
        results: Results = [(clip.id, clip.error) for clip in batch if clip.error is not None]
        valid = [clip for clip in batch if clip.error is None]
        answers = predictor.try_batch(
            [clip.input for clip in valid], only=only, unsure_below=unsure_below
        )
        for clip, answer in zip(valid, answers, strict=True):
            results.append(
                (clip.id, str(answer) if isinstance(answer, UnusableClipError) else answer)
            )
        yield results
    shutil.rmtree(folder, ignore_errors=True)


def _is_file(clip: NamedClip) -> bool:
    """Whether the features stage encodes a clip: a file with a transcript that is text.

    Its manifest holds no file names that are not UTF-8.
    """
    if clip.error is not None or not isinstance(clip.input.audio, str | Path):
        return False
    names = clip.id + str(clip.input.audio)
    return not control_characters(clip.input.text or "") and not _SURROGATES.search(names)


def _write_manifest(clips: Sequence[NamedClip], with_text: bool, path: Path) -> None:
    rows = [
        {
            "utterance_id": clip.id,
            "audio_path": str(clip.input.audio),
            "audio_digest": "",
            "text": tidy(clip.input.text or "") if with_text else "",
            "duration_s": _seconds(str(clip.input.audio)),
        }
        for clip in clips
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _seconds(path: str) -> float:
    try:
        with opened(path) as handle:
            header = read_header(handle)
    except UnusableClipError:  # told when the clip is decoded
        return 0.0
    return header.frames / header.rate


def _of_store(
    predictor: Predictor, folder: Path, only: Sequence[str] | None, unsure_below: float | None
) -> Iterator[Results]:
    store = FeatureStore(folder)
    columns = ["utterance_id", "audio_path", "reason"]
    failed = read_table(folder / QUARANTINE, columns=columns).to_pylist()
    yield [
        # A row has the file's name already.
        (row["utterance_id"], row["reason"].removesuffix(f" ({Path(row['audio_path']).name})"))
        for row in failed
    ]
    for start in range(0, len(store.ids), CLIPS_PER_BATCH):
        ids = store.ids[start : start + CLIPS_PER_BATCH]
        answers = predictor.predict_stored(store, ids, only=only, unsure_below=unsure_below)
        yield list(zip(ids, answers, strict=True))
