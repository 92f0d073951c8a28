"""A run of the features stage that is killed, its corpus, and helpers to find its processes.

python features_killed.py MANIFEST OUT     runs until it is killed from outside
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import ray

from helpers.features_case import write_corpus, write_manifest_rows
from multistill.config import FeaturesConfig
from multistill.features.encode import encode
from multistill.features.store import FeatureStore

CONFIG = {
    "speech": {"model": "untrained-wav2vec2"},
    "dtype": "float32",
    "shard_seconds": 4.0,
    "encoders": 2,
}


CLIPS, SHARDS = 60, 30


def write_manifest(folder: Path) -> Path:
    """A manifest of `CLIPS` clips, which `CONFIG` divides into `SHARDS`."""
    rows = write_corpus(folder / "wav", [2.0] * 20)
    rows = [{**rows[i % 20], "utterance_id": f"c/{i:04d}"} for i in range(CLIPS)]
    return write_manifest_rows(folder / "manifest.parquet", rows)


def assert_complete(out: Path) -> None:
    """Every clip is in the store, whole, and once."""
    assert markers(out) == SHARDS
    store = FeatureStore(out)
    store.verify()
    assert store.ids == [f"c/{i:04d}" for i in range(CLIPS)]
    assert pq.read_table(out / "quarantine.parquet").num_rows == 0
    assert {len(store.audio(name)) for name in store.ids} == {99}


def markers(out: Path) -> int:
    return len(list((out / "shards").glob("*.json")))


def wait_for(count: int, out: Path) -> None:
    deadline = time.monotonic() + 400
    while markers(out) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def descendants(root: int) -> dict[int, str]:
    """Process id -> command line of all descendants of a process (Linux)."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # Format: pid (name) state parent ...; the name can contain spaces.
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    below: dict[int, str] = {}
    level = [root]
    while level:
        level = [pid for pid, parent in parents.items() if parent in level and pid in names]
        below.update({pid: names[pid] for pid in level})
    return below


def actors(root: int) -> list[int]:
    """Encoder actors among the descendants of a process; only these write shards."""
    return [pid for pid, command in descendants(root).items() if "EncodeShard" in command]


def main(manifest: Path, out: Path) -> None:
    ray.init(
        address="local",  # do not connect to a cluster that runs on this machine
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        logging_level="error",
    )
    encode(manifest, FeaturesConfig.model_validate(CONFIG), out)
    os.write(1, b"finished before it was killed\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
