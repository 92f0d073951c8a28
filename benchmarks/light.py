"""Students that are light end to end, on EMO-DB, leaving one speaker out: log-mel energies alone.

    multistill run jobs/emodb.yaml --set corpora.0.path=/data/emodb --until prepare
    python benchmarks/light.py FOLDER --manifest MANIFEST [--only NAME,...] [--speakers 1,2,...]
                               [--seeds 1] [--copies 4]

MANIFEST is the folder that the first command prints. Encodes its clips and `--copies` distorted
copies of each once: as log-mel energies for the students, and by smart-turn for the teacher. Every
speaker is tested once, by models trained on seven others; two more choose the epoch. The teacher is
the linear probe on smart-turn's states, the strongest teacher that is fitted in a second; its
targets for the training clips come from probes that did not hear these speakers, or in rows called
in-sample from the one that did. A copy has the
label and the target of its clip, and is read in training only. One process, one thread; every
training is a line of FOLDER/runs.jsonl and is not repeated.

Prints UAR over all test clips (mean over seeds; standard deviation over seeds), parameters with
the front end, and the difference to the same student without a teacher, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soxr
import torch
from heads import leaving_out, uar, write_manifest
from rows import add_row

from multistill.audio import SAMPLE_RATE
from multistill.audio.distortions import generator_for, reverberant, tilted, white_noise
from multistill.config import DistillationConfig, SpeechEncoderConfig, TrainConfig
from multistill.corpora.manifest import MANIFEST, classes_of, label_arrays, read_manifest
from multistill.distillation.targets import write_soft_targets
from multistill.encoders.registry import load_speech, resolve_speech
from multistill.features.cache import open_store
from multistill.features.decode import decode
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer
from multistill.inference.predict import predict_logits
from multistill.inference.quantize import rounded
from multistill.models.build import EmotionModel, build, count_parameters
from multistill.models.presets import resolve
from multistill.models.probe import Probe, fit_probe
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.loop import fit
from multistill.training.task import TrainingTask
from multistill.typing import FloatArray

ENCODERS = {
    "log-mel": {"model": "log-mel"},
    "smart-turn": {"model": "smart-turn", "layers": [2]},
    "smart-turn-0": {"model": "smart-turn", "layers": [0]},
    "smart-turn-1": {"model": "smart-turn", "layers": [1]},
}
OUT_OF_FOLD = 3


@dataclass(frozen=True)
class Row:
    """A row of the table: what it reads, a preset, what is changed in it, and its training."""

    preset: str
    encoder: str = "log-mel"
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    copies: bool = True
    distillation: dict[str, Any] | None = None
    out_of_fold: bool = True


HEAD = {"epochs": 25, "batch_size": 16, "learning_rate": 1e-3}
LIGHT = {"epochs": 8, "batch_size": 16, "learning_rate": 2e-3, "weight_decay": 0.05}
KD = {"temperature": 2.0, "weight": 0.7}
ROWS = {
    "teacher": Row("small-audio-teacher", "smart-turn", train=HEAD, copies=False),
    "student": Row("small-audio-student", train=HEAD, copies=False),
    "light-s": Row("light-student-s", train=LIGHT),
    "light-s-distilled": Row("light-student-s", train=LIGHT, distillation=KD),
    "light-s-distilled-in-sample": Row(
        "light-student-s", train=LIGHT, distillation=KD, out_of_fold=False
    ),
    "light": Row("light-student", train=LIGHT),
    "light-distilled": Row("light-student", train=LIGHT, distillation=KD),
    "light-l": Row("light-student-l", train=LIGHT),
    "light-l-distilled": Row("light-student-l", train=LIGHT, distillation=KD),
}


def distorted(samples: FloatArray, clip: str, copy: int) -> FloatArray:
    """Copy number `copy` of a clip: another speed and pitch, a tilted spectrum, room and noise."""
    random = generator_for(f"copy {copy}", clip)
    speed = random.uniform(0.88, 1.12)
    samples = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE / speed).astype(np.float32)
    samples = tilted(samples, random.uniform(-3, 3))
    if random.random() < 0.3:
        samples = reverberant(samples, random)
    if random.random() < 0.7:
        samples = white_noise(samples, random.uniform(10, 35), random)
    return samples


def key(clip: str, copy: int) -> str:
    """Id of a copy of a clip; 0 is the clip itself."""
    return f"{clip}~{copy}" if copy else clip


def encode(manifest: Path, folder: Path, name: str, copies: int) -> Path:
    """Store the states of all clips and their copies, in this process."""
    store = folder / f"features-{name}-{copies}"
    if (store / "features.json").exists():
        return store
    config = SpeechEncoderConfig.model_validate(ENCODERS[name])
    encoder = load_speech(config, resolve_speech(config), torch.device("cpu"))
    rows = read_manifest(manifest, ["utterance_id", "audio_path"]).to_pylist()
    nothing = np.zeros((0, 1), np.float32)
    with shard_writer(store, 0, "float16", encoder.info.dim, 1, {}) as writer:
        for row in rows:
            clip = row["utterance_id"]
            for copy in range(copies + 1):

                def change(samples: FloatArray, clip: str = clip, copy: int = copy) -> FloatArray:
                    return distorted(samples, clip, copy) if copy else samples

                wave = decode(row["audio_path"], max_seconds=8, long_clips="cut", change=change)
                [states] = encoder.encode([wave.samples])
                writer.append([Clip(key(clip, copy), states, nothing)])
    marker = read_marker(store, 0)
    assert marker is not None
    info = {"dtype": "float16", "audio_dim": encoder.info.dim, "text_dim": 1}
    finish_store(store, [marker], {**info, "speech": encoder.info.to_dict()})
    return store


def with_copies(manifest: Path, copies: int) -> Path:
    """The manifest with the copies of its training clips."""
    out = manifest.with_name(f"{manifest.name}-copies-{copies}")
    if not (out / MANIFEST).exists():
        table = pq.read_table(manifest / MANIFEST)
        train = table.filter(pa.array(np.array(table["split"].to_pylist()) == "train"))
        parts = [table]
        for copy in range(1, copies + 1):
            ids = pa.array([key(name, copy) for name in train["utterance_id"].to_pylist()])
            index = train.schema.get_field_index("utterance_id")
            parts.append(train.set_column(index, train.schema.field(index), ids))
        write_manifest(pa.concat_tables(parts), out)
    return out


@dataclass(frozen=True)
class Bench:
    """Folder, copies, and the corpus of a run of this script."""

    folder: Path
    manifest: Path
    copies: int

    @lru_cache(maxsize=8)  # noqa: B019 - one object
    def store(self, encoder: str) -> Any:
        return open_store(encode(self.manifest, self.folder, encoder, self.copies))

    def fold(self, speaker: int) -> tuple[Path, dict[str, list[str]], dict[str, np.ndarray]]:
        """Manifest that leaves out a speaker, and ids and labels of its parts."""
        path = leaving_out(self.manifest, self.folder, speaker)
        table = read_manifest(path, ["utterance_id", "label", "label_soft", "split"])
        labels, _ = label_arrays(table)
        ids = np.array(table["utterance_id"].to_pylist())
        split = table["split"].to_numpy(zero_copy_only=False)
        parts = ("train", "valid", "test")
        return (
            path,
            {p: list(ids[split == p]) for p in parts},
            {p: labels[split == p] for p in parts},
        )

    def train(
        self, row: Row, manifest: Path, seed: int, targets: Path | None = None
    ) -> EmotionModel:
        """The model of the epoch that was best on validation."""
        store = self.store(row.encoder)
        task = TrainingTask(
            name="model",
            role="student",
            spec=resolve(row.preset, row.model),
            train=TrainConfig.model_validate(row.train),
            seed=seed,
            manifest=str(with_copies(manifest, self.copies) if row.copies else manifest),
            features=str(store.folder),
            soft_targets=None if targets is None else str(targets),
            distillation=None
            if targets is None
            else DistillationConfig.model_validate(row.distillation),
        )
        data = TrainingData.open(task)
        with tempfile.TemporaryDirectory() as state:
            for _ in fit(task, state_dir=Path(state), data=data, device="cpu"):
                pass
            weights, _ = best_weights(Path(state))
        model = build(task.spec, data.store.audio_dim, data.store.text_dim)
        model.load_state_dict(weights)
        return model.eval()

    def targets(self, speaker: int, out_of_fold: bool) -> Path:
        """The teacher's answers: of a training clip by a probe that did not hear its voice, or by
        the one that was fitted on all.
        """
        kind = "out-of-fold" if out_of_fold else "in-sample"
        path = self.folder / f"targets-{kind}-{speaker}-{self.copies}.parquet"
        if path.exists():
            return path
        manifest, ids, _ = self.fold(speaker)
        names = dict(
            pq.read_table(manifest / MANIFEST, columns=["utterance_id", "group"]).to_pydict()
        )
        group_of = dict(zip(names["utterance_id"], names["group"], strict=True))
        speakers = sorted({group_of[name] for name in ids["train"]})
        found: dict[str, FloatArray] = {}
        parts = [speakers[part::OUT_OF_FOLD] for part in range(OUT_OF_FOLD)] if out_of_fold else []
        for held in (*parts, []):
            # The last one is fitted on all, for the validation clips.
            heard = [name for name in ids["train"] if group_of[name] not in held]
            wanted = [name for name in ids["train"] if group_of[name] in held]
            wanted = wanted or [*ids["valid"], *(() if out_of_fold else ids["train"])]
            probe = self.fit("smart-turn", speaker, heard)
            answers = probe.predict(self.store("smart-turn"), wanted)
            found |= dict(zip(wanted, np.log(np.maximum(answers, 1e-6)), strict=True))
        train = [key(name, copy) for name in ids["train"] for copy in range(self.copies + 1)]
        wanted = [*train, *ids["valid"]]
        logits = np.stack([found[name.split("~")[0]] for name in wanted])
        classes = classes_of(read_manifest(manifest, ["label"]))
        nobody = [-1] * len(wanted)
        write_soft_targets(path, wanted, logits, kind, nobody, classes=classes)
        return path

    def fit(self, encoder: str, speaker: int, heard: Sequence[str]) -> Probe:
        """A linear probe on some of the training clips, its penalty chosen on validation."""
        manifest, ids, _ = self.fold(speaker)
        table = read_manifest(manifest, ["utterance_id", "label", "label_soft"])
        share_of = dict(zip(table["utterance_id"].to_pylist(), label_arrays(table)[1], strict=True))
        return fit_probe(
            self.store(encoder),
            heard,
            np.stack([share_of[name] for name in heard]),
            modality="audio",
            valid_ids=ids["valid"],
            valid_shares=np.stack([share_of[name] for name in ids["valid"]]),
        )

    def run(self, name: str, speaker: int, seed: int) -> dict[str, Any]:
        """Train one row and predict the speaker's clips."""
        row, started = ROWS[name], time.process_time()
        manifest, ids, labels = self.fold(speaker)
        targets = self.targets(speaker, row.out_of_fold) if row.distillation else None
        model = self.train(row, manifest, seed, targets)
        store = self.store(row.encoder)
        found = {
            part: predict_logits(model, store, ids[part], torch.device("cpu"))
            for part in ("valid", "test")
        }
        return {
            "row": name,
            "speaker": speaker,
            "seed": seed,
            "seconds": round(time.process_time() - started, 1),
            "parameters": count_parameters(model) + store.info["speech"]["params"],
            "valid": round(uar(labels["valid"], found["valid"]), 4),
            "labels": labels["test"].tolist(),
            "answers": found["test"].argmax(axis=1).tolist(),
            "rounded": predict_logits(rounded(model), store, ids["test"], torch.device("cpu"))
            .argmax(axis=1)
            .tolist(),
        }

    def probe(self, encoder: str, speaker: int) -> dict[str, Any]:
        """The linear probe on the same clips."""
        _, ids, labels = self.fold(speaker)
        store, probe = self.store(encoder), self.fit(encoder, speaker, ids["train"])
        return {
            "row": f"probe-{encoder}",
            "speaker": speaker,
            "seed": 0,
            "parameters": probe.params_trainable + store.info["speech"]["params"],
            "valid": round(uar(labels["valid"], probe.predict(store, ids["valid"])), 4),
            "labels": labels["test"].tolist(),
            "answers": probe.predict(store, ids["test"]).argmax(axis=1).tolist(),
        }


def pooled_uar(results: Sequence[dict[str, Any]], answers_of: str = "answers") -> float:
    """UAR over the clips of all speakers that were tested."""
    labels = np.concatenate([result["labels"] for result in results])
    answers = np.concatenate([result[answers_of] for result in results])
    recalls = [(answers[labels == each] == each).mean() for each in np.unique(labels)]
    return float(np.mean(recalls))


def report(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown."""
    titles = ("row", "parameters", "UAR, test", "in 8 bits", "UAR, validation")
    titles += ("against the control", "speakers x seeds")
    yield f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}"
    of_seed: dict[str, dict[int, float]] = {}
    speakers: dict[str, set[int]] = {}
    for name in dict.fromkeys(result["row"] for result in results):
        rows = [result for result in results if result["row"] == name]
        seeds = sorted({result["seed"] for result in rows})
        of_seed[name] = {s: pooled_uar([r for r in rows if r["seed"] == s]) for s in seeds}
        speakers[name] = {result["speaker"] for result in rows}
        values = list(of_seed[name].values())
        control = of_seed.get(name.partition("-distilled")[0], {}) if "-distilled" in name else {}
        gains = [value - control[s] for s, value in of_seed[name].items() if s in control]
        known = [row for row in rows if "rounded" in row]
        in_8_bits = f"{pooled_uar(known, 'rounded'):.3f}" if len(known) == len(rows) else ""
        yield (
            f"| {name} | {rows[0]['parameters']:,} | {statistics.fmean(values):.3f} ± "
            f"{statistics.pstdev(values):.3f} | {in_8_bits} "
            f"| {statistics.fmean(r['valid'] for r in rows):.3f} | "
            + (f"{statistics.fmean(gains):+.3f} " if gains else "")
            + f"| {len(speakers[name])} x {len(seeds)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--only", default=",".join(ROWS), help="names of rows, with commas")
    parser.add_argument("--speakers", default="1,2,3,4,5,6,7,8,9,10")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--row", action="append", default=[], help="NAME=JSON of a Row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, given.manifest, given.copies)
    for text in given.row:
        name, _, values = text.partition("=")
        ROWS[name] = Row(**json.loads(values))
    names = [*given.only.split(",")]
    lines = folder / "runs.jsonl"
    results = (
        [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    )
    done = {(result["row"], result["speaker"], result["seed"]) for result in results}
    for seed in map(int, given.seeds.split(",")):
        for speaker in map(int, given.speakers.split(",")):
            for name in names:
                probe = name.startswith("probe-")
                if (name, speaker, 0 if probe else seed) in done:
                    continue
                result = (
                    bench.probe(name.removeprefix("probe-"), speaker)
                    if probe
                    else bench.run(name, speaker, seed)
                )
                done.add((name, speaker, result["seed"]))
                results.append(result)
                add_row("light", result, seed=result["seed"], file=lines)
                print(name, speaker, seed, pooled_uar([result]), file=sys.stderr, flush=True)
    print("\n".join(report(results)))


if __name__ == "__main__":
    main()
