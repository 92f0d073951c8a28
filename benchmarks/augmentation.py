"""What augmentation is worth: UAR of speakers never heard, each variant beside the plain training.

    python benchmarks/augmentation.py MANIFEST FEATURES FOLDER [--splits 1,2,3] [--seeds 1]
                                      [--only NAME,...] [--paths wide] [--epochs 25]

MANIFEST and FEATURES are those of a workspace (prepare/..., features/...), of a job with the
encoders to look at. Leaves one speaker out per split, as `benchmarks/heads.py --leave-one-out`: the
next two choose the epoch. Copies of all clips are encoded first, in this process. Every run is a
line of FOLDER/runs.jsonl and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from heads import TRAIN, Inputs, leaving_out, uar, write_manifest
from rows import add_row

from multistill.config import CopiesConfig, FeaturesConfig, TrainConfig
from multistill.corpora.manifest import MANIFEST
from multistill.features.actors import EncodeShard
from multistill.features.augmented import AUGMENTED, CLIPS, STORE, list_copies
from multistill.features.cache import open_store
from multistill.features.encode import encode
from multistill.features.identity import resolved_weights
from multistill.features.shards import plan_shards
from multistill.inference.predict import predict_logits
from multistill.models.build import build
from multistill.models.presets import resolve
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.loop import fit
from multistill.training.task import TrainingTask

COPIES = CopiesConfig(copies=2)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixup": {"mixup": 0.2},
    "pooled": {"mixup": 0.2, "mixup_of": "pooled"},
    "noise": {"noise": 0.3},
    "masks": {"time_masks": 2, "feature_masks": 2},
    "copies": {},
    "copies-mixup": {"mixup": 0.2},
}
"""Those named `copies` read the copies, too."""


def encode_copies(manifest: Path, features: Path, folder: Path) -> Path:
    """The store of the copies of all clips, encoded with the settings of the feature store."""
    store = folder / "copies" / STORE
    if (store / "features.json").exists():
        return store
    settings = open_store(features).info["settings"]
    config = FeaturesConfig.model_validate({**settings, "augmentation": COPIES.model_dump()})
    table = pq.read_table(manifest / MANIFEST)
    write_manifest(table, folder / "all", split=np.full(len(table), "train", object))
    store.mkdir(parents=True, exist_ok=True)
    list_copies([folder / "all" / MANIFEST], features, COPIES, folder / "copies")
    clips = folder / "copies" / CLIPS
    plan = plan_shards(clips, config.shard_seconds, store, AUGMENTED.columns)
    (store / "shards").mkdir(exist_ok=True)
    worker = EncodeShard(
        config.model_dump(),
        resolved_weights(config),
        str(plan.path),
        str(store),
        cuda=False,
        threads=1,
        source=AUGMENTED,
    )
    for shard in range(plan.shards):
        worker(pa.table({"shard": [shard]}))
    encode(clips, config, store, source=AUGMENTED)  # every shard is done: this finishes the store
    return store


def train(inputs: Inputs, variant: str, seed: int, copies: Path, paths: str, epochs: int) -> float:
    """Test UAR of an audio head, of the epoch that was best on validation."""
    settings = {**TRAIN, "epochs": epochs, "metric": "uar", "augmentation": VARIANTS[variant]}
    task = TrainingTask(
        name="model",
        role="student",
        spec=resolve("small-audio-student", {"paths": paths}),
        train=TrainConfig.model_validate(settings),
        seed=seed,
        manifest=str(inputs.manifest),
        features=str(inputs.features),
        copies=str(copies) if variant.startswith("copies") else None,
    )
    data = TrainingData.open(task)
    classes = len(data.classes)
    task = replace(task, spec=replace(task.spec, num_classes=classes))
    with tempfile.TemporaryDirectory() as state:
        for _ in fit(task, state_dir=Path(state), data=data, device="cpu"):
            pass
        weights, _ = best_weights(Path(state))
    model = build(task.spec, data.store.audio_dim, data.store.text_dim)
    model.load_state_dict(weights)
    ids, labels, _ = inputs.parts()["test"]
    return uar(labels, predict_logits(model.eval(), data.store, ids, torch.device("cpu")))


def report(results: Sequence[dict[str, Any]]) -> None:
    """Mean UAR of every variant, and its difference from the plain training."""
    score = {(r["variant"], r["split"], r["seed"]): r["test"] for r in results}
    print("| variant | UAR | minus plain | better | trainings |\n| --- | --- | --- | --- | --- |")
    for variant in VARIANTS:
        rows = [key for key in score if key[0] == variant and ("plain", *key[1:]) in score]
        if not rows:
            continue
        gains = [score[key] - score[("plain", *key[1:])] for key in rows]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        mean = statistics.fmean(score[key] for key in rows)
        better = sum(gain > 0 for gain in gains)
        print(
            f"| {variant} | {mean:.3f} | {statistics.fmean(gains):+.3f} ± {error:.3f} "
            f"| {better} of {len(gains)} | {len(gains)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", default="1,2,3,4,5,6,7,8,9,10")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--paths", default="wide", choices=["deep", "wide", "both"])
    parser.add_argument("--epochs", type=int, default=25)
    given = parser.parse_args()
    torch.set_num_threads(1)
    copies = encode_copies(given.manifest, given.features, given.folder)
    lines = given.folder / "runs.jsonl"
    found = lines.read_text().splitlines() if lines.exists() else []
    results: list[dict[str, Any]] = [json.loads(line) for line in found]
    done = {(r["variant"], r["split"], r["seed"]) for r in results}
    for seed in map(int, given.seeds.split(",")):
        for split in map(int, given.splits.split(",")):
            inputs = Inputs(leaving_out(given.manifest, given.folder, split), given.features)
            for variant in given.only.split(","):
                if (variant, split, seed) in done:
                    continue
                test = train(inputs, variant, seed, copies, given.paths, given.epochs)
                result = {"variant": variant, "split": split, "seed": seed, "test": round(test, 4)}
                results.append(result)
                add_row("augmentation", result, seed=seed, file=lines)
    report(results)


if __name__ == "__main__":
    main()
