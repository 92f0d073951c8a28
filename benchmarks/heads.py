"""Which heads beat the linear probe: UAR of speakers never heard, over splits and seeds.

    python benchmarks/heads.py FOLDER [--job jobs/demo.yaml] [--splits 1,2,3,4,5] [--seeds 1]
                               [--only NAME,...] [--teacher wide] [--processes 2]
                               [--leave-one-out] [--set K=V]

Encodes the job's corpus once, then trains every head of the table on every split and seed: on
one thread, with the loop of the product, the epoch chosen on validation. The test part is scored
once, after that. Distilled students learn from three teachers of other seeds (`--teacher`, by
default the linear path alone; in-sample soft targets, their distributions averaged). Every run is
a line of FOLDER/runs.jsonl and is not repeated; the table is made from all lines.

Prints the majority baseline (its UAR is one over the number of classes), the probe and the heads
with mean and standard deviation over runs, and paired differences over equal splits and seeds with
their standard error. The splits share sessions, so the standard errors are those of these splits
and not of other corpora.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from rows import add_row
from sklearn.metrics import recall_score

from multistill.config import DistillationConfig, SplitConfig, TrainConfig
from multistill.corpora.manifest import MANIFEST, label_arrays, read_manifest
from multistill.corpora.split import PARTS, split_rows
from multistill.distillation.targets import write_soft_targets
from multistill.features.cache import open_store
from multistill.inference.ensemble import combine
from multistill.inference.predict import predict_logits
from multistill.models.build import EmotionModel, build, count_parameters
from multistill.models.presets import resolve
from multistill.models.probe import fit_probe
from multistill.models.spec import Modality
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.loop import fit
from multistill.training.task import TrainingTask


@dataclass(frozen=True)
class Head:
    """A row of the table: a preset, what is changed in it, and how it is trained."""

    preset: str
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    distilled: bool = False


TRAIN = {"epochs": 50, "batch_size": 16, "learning_rate": 1e-3}
DEEP = {"paths": "deep", "dropout": 0.1, "classifier_dropout": 0.2}
RAW = {**DEEP, "standardize": "none"}
WIDE = {"paths": "wide"}
WIDE_TRAIN = {"learning_rate": 2e-3}
LIGHT_TRAIN = {"learning_rate": 2e-3, "epochs": 25}
HEADS = {
    "teacher-raw": Head("small-teacher", RAW),
    "teacher-deep": Head("small-teacher", DEEP),
    "teacher": Head("small-teacher"),
    "student-raw": Head("small-student", RAW),
    "student-deep": Head("small-student", DEEP),
    "student": Head("small-student"),
    "wide": Head("small-student", WIDE, WIDE_TRAIN),
    "student-deep-distilled": Head("small-student", DEEP, distilled=True),
    "student-distilled": Head("small-student", distilled=True),
    "audio-teacher": Head("small-audio-teacher"),
    "audio": Head("small-audio-student"),
    "audio-wide": Head("small-audio-student", WIDE, WIDE_TRAIN),
    "audio-distilled": Head("small-audio-student", distilled=True),
    "text": Head("small-text-student"),
    "text-distilled": Head("small-text-student", distilled=True),
    "light": Head("light-multimodal-student", train=LIGHT_TRAIN),
    "light-distilled": Head("light-multimodal-student", train=LIGHT_TRAIN, distilled=True),
}
PAIRS = [
    ("teacher-deep", "teacher-raw"),
    ("teacher", "teacher-deep"),
    ("student-deep", "student-raw"),
    ("student", "student-deep"),
    ("teacher", "probe"),
    ("student", "probe"),
    ("wide", "probe"),
    ("student-deep-distilled", "student-deep"),
    ("student-distilled", "student"),
    ("student-distilled", "probe"),
    ("audio-teacher", "audio-probe"),
    ("audio", "audio-probe"),
    ("text", "text-probe"),
    ("audio-distilled", "audio"),
    ("text-distilled", "text"),
    ("light", "probe"),
    ("light-distilled", "light"),
]
PROBES: dict[str, Modality] = {
    "probe": "multimodal",
    "audio-probe": "audio",
    "text-probe": "text",
}
TEACHERS = 3
DISTILLATION = DistillationConfig(temperature=2.0, weight=0.5)


@dataclass(frozen=True)
class Run:
    """One training of one head, or the probe."""

    head: str
    split: int
    seed: int


@dataclass(frozen=True)
class Inputs:
    """A split of the corpus and its features."""

    manifest: Path
    features: Path

    def parts(self) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
        """Ids, labels and vote shares of train, valid and test."""
        table = read_manifest(self.manifest, ["utterance_id", "label", "label_soft", "split"])
        labels, shares = label_arrays(table)
        ids = np.array(table["utterance_id"].to_pylist())
        split = table["split"].to_numpy(zero_copy_only=False)
        stored = np.isin(ids, open_store(str(self.features)).ids)
        return {
            part: (list(ids[rows]), labels[rows], shares[rows])
            for part in PARTS
            for rows in ((split == part) & stored,)
        }


def encode(job: Path, folder: Path, settings: Sequence[str] = ()) -> tuple[Path, Path]:
    """Run the job up to its features; returns the folders of its manifest and features."""
    workspace = folder / "workspace"
    command = [sys.executable, "-m", "multistill", "run", str(job), "--until", "features"]
    for setting in (f"workspace={workspace}", *settings):
        command += ["--set", setting]
    subprocess.run(command, check=True)
    [manifest], [features] = (
        [path for path in (workspace / stage).iterdir() if path.is_dir()]
        for stage in ("prepare", "features")
    )
    return manifest, features


def with_split(manifest: Path, job: Path, folder: Path, seed: int) -> Path:
    """The manifest with another split of the same kind."""
    out = folder / f"split-{seed}"
    if not (out / MANIFEST).exists():
        settings = yaml.safe_load(job.read_text(encoding="utf-8")).get("split", {})
        table = pq.read_table(manifest / MANIFEST)
        split = split_rows(table, SplitConfig.model_validate({**settings, "seed": seed}))
        fold = pa.array(split.fold, table.schema.field("fold").type)
        write_manifest(table, out, split=[PARTS[part] for part in split.part], fold=fold)
    return out


def leaving_out(manifest: Path, folder: Path, number: int) -> Path:
    """The manifest with one group as test (counted from 1) and the next two as validation."""
    out = folder / f"without-{number}"
    if not (out / MANIFEST).exists():
        table = pq.read_table(manifest / MANIFEST)
        names = np.array(table["group"].to_pylist())
        groups = sorted(set(names))
        order = [groups[(number - 1 + offset) % len(groups)] for offset in range(3)]
        part = np.full(len(names), "train", object)
        part[np.isin(names, order[1:])] = "valid"
        part[names == order[0]] = "test"
        write_manifest(table, out, split=part)
    return out


def write_manifest(table: pa.Table, out: Path, **changed: Any) -> None:
    """Write the table with some columns replaced; a run that is killed leaves no half of it."""
    columns = {name: table[name] for name in table.column_names}
    columns |= {name: pa.array(values) for name, values in changed.items()}
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "partial"
    pq.write_table(pa.table(columns, metadata=table.schema.metadata), partial)
    partial.replace(out / MANIFEST)


def uar(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Unweighted average recall over the classes that occur; ties of the votes are left out."""
    decided = labels >= 0
    truth, found = labels[decided], outputs.argmax(axis=1)[decided]
    return float(recall_score(truth, found, labels=np.unique(truth), average="macro"))


def train(inputs: Inputs, head: Head, seed: int, targets: Path | None) -> tuple[EmotionModel, int]:
    """The model of the epoch that was best on validation, and that epoch."""
    task = TrainingTask(
        name="model",
        role="student",
        spec=resolve(head.preset, head.model),
        train=TrainConfig.model_validate({**TRAIN, **head.train}),
        seed=seed,
        manifest=str(inputs.manifest),
        features=str(inputs.features),
        soft_targets=None if targets is None else str(targets),
        distillation=None if targets is None else DISTILLATION,
    )
    data = TrainingData.open(task)
    with tempfile.TemporaryDirectory() as state:
        for _ in fit(task, state_dir=Path(state), data=data, device="cpu"):
            pass
        weights, progress = best_weights(Path(state))
    model = build(task.spec, data.store.audio_dim, data.store.text_dim)
    model.load_state_dict(weights)
    return model.eval(), progress.best_epoch


def soft_targets(inputs: Inputs, teacher: str, seed: int, folder: Path) -> Path:
    """Averaged distributions of the teachers on the training and validation utterances."""
    path = folder / f"targets-{teacher}-{inputs.manifest.name}-{seed}.parquet"
    if not path.exists():
        parts = inputs.parts()
        ids = [*parts["train"][0], *parts["valid"][0]]
        store = open_store(str(inputs.features))
        outputs = []
        for member in range(TEACHERS):
            model, _ = train(inputs, HEADS[teacher], 1000 * (member + 1) + seed, None)
            outputs.append(predict_logits(model, store, ids, torch.device("cpu")))
        write_soft_targets(path, ids, combine(outputs), "in-sample", [-1] * len(ids))
    return path


def execute(run: Run, inputs: Inputs, teacher: str, folder: Path) -> dict[str, Any]:
    """Train and score one head; the result is a line of runs.jsonl."""
    torch.set_num_threads(1)
    parts, store = inputs.parts(), open_store(str(inputs.features))
    epoch = 0
    if run.head in PROBES:
        (ids, _, shares), (valid, _, valid_shares) = parts["train"], parts["valid"]
        probe = fit_probe(
            store,
            ids,
            shares,
            modality=PROBES[run.head],
            valid_ids=valid,
            valid_shares=valid_shares,
        )
        scores = {part: uar(parts[part][1], probe.predict(store, parts[part][0])) for part in parts}
        params = probe.params_trainable
    else:
        head = HEADS[run.head]
        targets = soft_targets(inputs, teacher, run.seed, folder) if head.distilled else None
        model, epoch = train(inputs, head, run.seed, targets)
        params = count_parameters(model)
        scores = {
            part: uar(labels, predict_logits(model, store, ids, torch.device("cpu")))
            for part, (ids, labels, _) in parts.items()
        }
    return {
        "head": run.head,
        "split": run.split,
        "seed": run.seed,
        "params": params,
        "epoch": epoch,
        "valid": round(scores["valid"], 4),
        "test": round(scores["test"], 4),
    }


def paired(results: Sequence[dict[str, Any]], first: str, second: str) -> list[float]:
    """Differences over equal splits and seeds; the probe has no seed."""
    score = {(r["head"], r["split"], r["seed"]): r["test"] for r in results}
    found = []
    for (head, split, seed), value in score.items():
        other = score.get((second, split, 0 if second in PROBES else seed))
        if head == first and other is not None:
            found.append(value - other)
    return found


def report(results: Sequence[dict[str, Any]], chance: float) -> Iterator[str]:
    """The two tables, in Markdown; `chance` is the UAR of always answering one class."""
    yield "| head | parameters | UAR, test | UAR, validation | runs |"
    yield "| --- | --- | --- | --- | --- |"
    yield f"| always the majority | 0 | {chance:.3f} | {chance:.3f} | |"
    for name in (*PROBES, *HEADS):
        rows = [result for result in results if result["head"] == name]
        if rows:
            test = [row["test"] for row in rows]
            spread = statistics.pstdev(test)
            valid = statistics.fmean(row["valid"] for row in rows)
            yield (
                f"| {name} | {rows[0]['params']:,} | {statistics.fmean(test):.3f} ± {spread:.3f} "
                f"| {valid:.3f} | {len(rows)} |"
            )
    yield "\n| paired difference | UAR | positive |"
    yield "| --- | --- | --- |"
    for first, second in PAIRS:
        differences = paired(results, first, second)
        if len(differences) > 1:
            error = statistics.stdev(differences) / len(differences) ** 0.5
            positive = sum(value > 0 for value in differences)
            yield (
                f"| {first} - {second} | {statistics.fmean(differences):+.3f} ± {error:.3f} "
                f"| {positive} of {len(differences)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("heads-benchmark"))
    parser.add_argument("--job", type=Path, default=Path("jobs/demo.yaml"))
    parser.add_argument("--splits", default="1,2,3,4,5")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--only", help="names of heads, separated by commas")
    parser.add_argument("--teacher", default="wide", choices=HEADS, metavar="NAME")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--leave-one-out", action="store_true", help="a session or speaker a split")
    parser.add_argument("--set", action="append", default=[], help="of the job, as multistill run")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    manifest, features = encode(given.job, folder, given.set)
    splits, seeds = ([int(n) for n in text.split(",")] for text in (given.splits, given.seeds))
    names = given.only.split(",") if given.only else list(HEADS)
    manifests = {
        n: leaving_out(manifest, folder, n)
        if given.leave_one_out
        else with_split(manifest, given.job, folder, n)
        for n in splits
    }
    inputs = {n: Inputs(path, features) for n, path in manifests.items()}
    # Seeds outermost: a run that is stopped has all heads with fewer seeds.
    runs = [Run(name, split, 0) for split in splits for name in PROBES]
    runs += [Run(name, split, seed) for seed in seeds for split in splits for name in names]
    lines = folder / "runs.jsonl"
    results = (
        [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    )
    done = {(result["head"], result["split"], result["seed"]) for result in results}
    runs = [run for run in runs if (run.head, run.split, run.seed) not in done]
    with ProcessPoolExecutor(given.processes) as pool:
        waiting = [
            pool.submit(execute, run, inputs[run.split], given.teacher, folder) for run in runs
        ]
        for future in waiting:
            results.append(future.result())
            add_row("heads", results[-1], seed=results[-1]["seed"], file=lines)
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    classes = set(read_manifest(manifest, ["label"])["label"].to_pylist()) - {None}
    print("\n".join(report(results, 1 / len(classes))))


if __name__ == "__main__":
    main()
