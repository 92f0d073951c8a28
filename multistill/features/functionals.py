"""openSMILE functionals of every recording: one vector per clip and set, extracted once.

    plan.arrow, plan.json        which clips share a shard (`features.shards`)
    functionals/00000.parquet    utterance_id, a list of float32 per set, reason (null: extracted)
    functionals.json             per set its name in openSMILE and the names of its values; totals

eGeMAPSv02 (88 values; Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set", 2016) and
ComParE_2016 (6,373; Schuller et al., 2016) are the baselines of speech-emotion papers. openSMILE is
free for research and not for commercial use, so it is an optional package that no default needs.
Level matters to these values, so they are of the signal before normalisation (mono, 16 kHz).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from multistill.audio import SAMPLE_RATE
from multistill.audio.errors import UnusableClipError, describe
from multistill.audio.reading import read_sound
from multistill.damaged import read_table
from multistill.errors import MultistillError
from multistill.features.encode import ray_data
from multistill.features.shards import ShardPlan, plan_shards, read_shard
from multistill.tracking.logger import RunLogger
from multistill.typing import BoolArray, FloatArray
from multistill.workspace import atomic_path, read_json, write_json

SETS: Mapping[str, str] = {"egemaps": "eGeMAPSv02", "compare": "ComParE_2016"}
"""Words of the job file, and the sets' names in openSMILE."""
TITLES: Mapping[str, str] = {"egemaps": "eGeMAPS", "compare": "ComParE"}
PACKAGE = "opensmile"
FOLDER = "functionals"
INFO = "functionals.json"
SHARD_SECONDS = 600.0
VERSION = 1
"""Raise it when what is stored of a clip changes."""

Extract = Callable[[FloatArray], FloatArray]
"""Samples [n] to values [D]."""


def package_version() -> str | None:
    """Version of the package opensmile; None if it is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def missing_package() -> str | None:
    """What to do if the package is not installed; None if it is."""
    if package_version() is not None:
        return None
    return (
        "evaluation.opensmile: the package opensmile is not installed; run `pip install opensmile` "
        "(for research only, see its licence), or remove the key"
    )


@lru_cache
def extractor(name: str) -> tuple[Extract, tuple[str, ...]]:
    """The function that extracts a set, and the names of its values.

    Args:
        name: of `SETS`.
    """
    import opensmile

    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet[SETS[name]],
        feature_level=opensmile.FeatureLevel.Functionals,
    )

    def extract(samples: FloatArray) -> FloatArray:
        values = smile.process_signal(samples, SAMPLE_RATE).to_numpy(np.float32)
        return np.asarray(values.reshape(-1), np.float32)

    return extract, tuple(smile.feature_names)


def extract_functionals(
    manifest: Path, sets: Sequence[str], out: Path, logger: RunLogger
) -> dict[str, Any]:
    """Extract the sets of every clip of a manifest, as Ray Data tasks. Ray must be initialised.

    Args:
        sets: of `SETS`.
        out: a new folder, or that of an earlier attempt, whose finished shards are kept.

    Returns:
        JSON summary: `clips`, `failed`, and `sizes` by set.

    Raises:
        MultistillError: no clip could be extracted.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = plan_shards(manifest, SHARD_SECONDS, out)
    (out / FOLDER).mkdir(exist_ok=True)
    pending = [shard for shard in range(plan.shards) if not shard_path(out, shard).exists()]
    done = plan.shards - len(pending)
    if done:
        logger.info(f"{done} of {plan.shards} shards are already finished")
    if pending:
        with ray_data(pending) as dataset:
            finished = dataset.map_batches(
                ExtractShard(plan.path, tuple(sets), out),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
            )
            for batch in finished.iter_batches(batch_size=None, batch_format="pyarrow"):
                done += len(batch)
                logger.progress(done, plan.shards, "shards")
    return finish_functionals(plan, sets, out)


def shard_path(out: Path, shard: int) -> Path:
    return out / FOLDER / f"{shard:05d}.parquet"


class ExtractShard:
    """Ray task: a shard number -> a finished file of the shard's functionals."""

    def __init__(self, plan: Path, sets: Sequence[str], out: Path) -> None:
        self._plan, self._sets, self._out = plan, sets, out

    def __call__(self, batch: pa.Table) -> pa.Table:
        [shard] = batch.column("shard").to_pylist()
        clips = read_shard(self._plan, shard).to_pylist()
        columns: dict[str, list[Any]] = {"utterance_id": [], "reason": []}
        columns |= {name: [] for name in self._sets}
        for clip in clips:
            values: dict[str, FloatArray] = {}
            reason = None
            try:
                sound = read_sound(clip["audio_path"], digest=clip["audio_digest"] or None)
                values = {name: _finite(extractor(name)[0](sound.samples)) for name in self._sets}
            except UnusableClipError as error:
                reason = str(error)
            except (MemoryError, ImportError):
                raise
            except Exception as error:
                reason = f"openSMILE failed: {type(error).__name__}: {describe(error)}"
            columns["utterance_id"].append(clip["utterance_id"])
            columns["reason"].append(reason)
            for name in self._sets:
                columns[name].append(None if reason else values[name])
        lists = {name: pa.array(columns[name], pa.list_(pa.float32())) for name in self._sets}
        texts = {key: pa.array(columns[key], pa.string()) for key in ("utterance_id", "reason")}
        with atomic_path(shard_path(self._out, shard)) as temporary:
            pq.write_table(pa.table({**texts, **lists}), temporary)
        return batch


def _finite(values: FloatArray) -> FloatArray:
    if not np.isfinite(values).all():
        raise UnusableClipError("too short for openSMILE", "some values are not finite")
    return values


def finish_functionals(plan: ShardPlan, sets: Sequence[str], out: Path) -> dict[str, Any]:
    """Write functionals.json for the finished shards; returns the summary."""
    reasons = [
        reason
        for shard in range(plan.shards)
        for reason in read_table(shard_path(out, shard), columns=["reason"])[0].to_pylist()
    ]
    failed = [reason for reason in reasons if reason]
    if len(failed) == len(reasons):
        raise MultistillError(
            f"openSMILE could extract none of {len(reasons)} clips ({failed[0]}); remove "
            "`evaluation.opensmile`, or install another version of the package"
        )
    names = {name: list(extractor(name)[1]) for name in sets}
    described = {name: {"set": SETS[name], "names": names[name]} for name in sets}
    info = {"version": VERSION, "package": package_version(), "shards": plan.shards}
    write_json(out / INFO, {**info, "sets": described})
    sizes = {name: len(values) for name, values in names.items()}
    return {"clips": len(reasons), "failed": len(failed), "sizes": sizes}


class Functionals:
    """The finished functionals of a folder, in memory.

    Attributes:
        sets: those that the folder holds.
    """

    def __init__(self, folder: Path) -> None:
        info = read_json(folder / INFO)
        self.sets: list[str] = list(info["sets"])
        parts = [read_table(shard_path(folder, shard)) for shard in range(info["shards"])]
        table = pa.concat_tables(parts)
        table = table.filter(pc.is_null(table["reason"]))
        names = table["utterance_id"].to_pylist()
        self._rows = {name: row for row, name in enumerate(names)}
        self._values = {
            name: pc.list_flatten(table[name])
            .to_numpy()
            .reshape(len(names), len(info["sets"][name]["names"]))
            for name in self.sets
        }

    def read(self, name: str, ids: Sequence[str]) -> tuple[FloatArray, BoolArray]:
        """Values [N, D] of a set, NaN for clips without, and whether there are any [N]."""
        values = self._values[name]
        rows = np.array([self._rows.get(clip, -1) for clip in ids], dtype=np.int64)
        found = np.where((rows >= 0)[:, None], values[rows], np.float32("nan"))
        return found, rows >= 0
