"""A small finished job for tests: manifest, feature store, trained heads, evaluation, report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from helpers.generators import kemdy20
from multistill.config import CLASSES, CorpusConfig, FeaturesConfig, JobConfig, SplitConfig
from multistill.corpora.manifest import with_classes
from multistill.corpora.prepare import prepare
from multistill.distillation.files import SOFT_TARGETS
from multistill.distillation.targets import write_soft_targets
from multistill.evaluation.evaluate import Candidate, EvaluatedFold, evaluate
from multistill.evaluation.inputs import ReferenceInputs
from multistill.features.collate import collate
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer
from multistill.models.build import EmotionModel, build
from multistill.models.files import ModelInfo, save_model
from multistill.models.presets import resolve
from multistill.report import html
from multistill.report.build import write_report
from multistill.search.results import SCHEMA, STUDY, TRIALS
from multistill.workspace import Artifact, read_json, write_json

AUDIO_DIM, TEXT_DIM = 12, 8
SPEECH = {"name": "log-mel", "trained": None, "params": 0}
TEXT = {"name": "untrained-electra", "trained": False, "params": 5_000}
SMALL = {"width": 16, "heads": 2, "layers": 1, "feedforward": 16, "classifier": 16}
PREPARE_SUMMARY = {"rejected": 3, "synthetic": True, "leaks": {"sessions": 0, "speakers": 0}}


class EvaluationCase:
    """The artifacts of one job up to `evaluate`, on real files.

    Attributes:
        manifest, store, distill, out: folders of the artifacts; `out` is of the evaluation.
        folders: model folders by name.
        candidates: the models that were evaluated.
        summary: what `evaluate` returned.
        metrics: content of metrics.json.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.manifest = make_manifest(home / "manifest")
        make_quality(self.manifest, home)
        self.store = make_store(self.manifest, home / "features")
        models = {
            "teacher": ("small-teacher", 60),
            "teacher-2": ("small-teacher", 20),
            "multimodal": ("small-student", 40),
            "multimodal-control": ("small-student", 1),
            "audio": ("small-audio-student", 40),
            "text": ("small-text-student", 40),
        }
        self.folders = {
            name: make_model(self.manifest, self.store, home / name, preset, steps, seed)
            for seed, (name, (preset, steps)) in enumerate(models.items())
        }
        self.candidates = [
            Candidate("teacher", "teacher", [self.folders["teacher"], self.folders["teacher-2"]]),
            self.candidate("multimodal", compare_to="multimodal-control", mlflow_run_id="abc123"),
            self.candidate("multimodal-control", role="control"),
            self.candidate("audio", compare_to="multimodal-control"),
            self.candidate("text"),
        ]
        self.distill = make_targets(self.manifest, home / "distill")
        self.out = home / "evaluation"
        self.out.mkdir()
        folds = [EvaluatedFold(self.manifest, self.candidates)]
        config = make_job().evaluation
        inputs = ReferenceInputs(rated={"case": False, "other": False})
        self.summary = evaluate(folds, self.store, config, self.out, seed=5, inputs=inputs)
        self.metrics: dict[str, Any] = read_json(self.out / "metrics.json")

    def candidate(self, name: str, role: str = "student", **more: Any) -> Candidate:
        return Candidate(name, role, [self.folders[name]], **more)

    def report(
        self, job: JobConfig | None = None, trials: int = 40, **prepare_summary: Any
    ) -> tuple[dict[str, Any], str]:
        """Write a report with a search; returns the content of report.json and report.html."""
        out = Path(tempfile.mkdtemp(prefix="report-", dir=self.home))
        search_summary = make_search(out / "search", trials)
        with patch.object(html, "_two_widths", _drawn_once):
            report = self._write(out, job or make_job(), search_summary, prepare_summary)
        return report, (out / "report.html").read_text(encoding="utf-8")

    def _write(
        self,
        out: Path,
        job: JobConfig,
        search_summary: Mapping[str, Any],
        prepare_summary: Mapping[str, Any],
    ) -> dict[str, Any]:
        stages = [
            {"name": "prepare", "fingerprint": "0123456789abcdef", "seconds": 1.0, "cached": True}
        ]
        return write_report(
            out,
            job=job,
            artifacts={
                "manifest": artifact(
                    "prepare", self.manifest, {**PREPARE_SUMMARY, **prepare_summary}
                ),
                "features": artifact("features", self.store, {"clips": 384, "quarantined": 1}),
                "soft_targets": artifact("distill", self.distill),
                "evaluation": artifact("evaluate", self.out),
                "search": artifact("search", out / "search", search_summary),
            },
            histories={
                name: read_json(folder / "history.json") for name, folder in self.folders.items()
            },
            stages=stages,
        )

    @cached_property
    def default_report(self) -> tuple[dict[str, Any], str]:
        """`report()` without arguments, written once."""
        return self.report()


_two_widths = html._two_widths
_drawn: dict[tuple[str, str], str | None] = {}


def _drawn_once(draw: Callable[..., str | None], *arguments: Any) -> str | None:
    """A figure as the page has it; drawing takes most of a report's time, and most are equal."""
    key = (draw.__name__, json.dumps(arguments, default=repr))
    if key not in _drawn:
        _drawn[key] = _two_widths(draw, *arguments)
    return _drawn[key]


def make_job(**more: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "name": "case",
            "corpora": [{"kind": "demo"}],
            "evaluation": {"resamples": 200, "latency_clips": 3},
            **more,
        }
    )


def make_manifest(folder: Path, sessions: int = 16, per_session: int = 24) -> Path:
    """Votes of ten raters, every 15th clip a tie; the last quarter of sessions is test."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for session in range(sessions):
        for turn in range(per_session):
            label = int(rng.integers(0, 7))
            votes = np.zeros(7, dtype=int)
            if turn % 15 == 14:
                votes[[label, (label + 1) % 7]] = 5
            else:
                votes[label] = int(rng.integers(6, 11))
                votes[(label + 3) % 7] = 10 - votes[label]
            split = (
                "test"
                if session >= sessions * 3 // 4
                else "valid"
                if session >= sessions * 5 // 8
                else "train"
            )
            rows.append(
                {
                    "utterance_id": f"case-{session:02d}-{turn:02d}",
                    "corpus": "case" if session % 2 else "other",
                    "session": f"case-s{session:02d}",
                    "dialogue": f"case-s{session:02d}",
                    "turn": turn,
                    "speaker": f"case-p{2 * session + turn % 2:02d}",
                    "gender": "female" if turn % 2 else "male",
                    "age": 25.0 if turn % 3 else 40.0,
                    "style": "scripted" if session % 4 < 2 else "improvised",
                    "audio_path": str(folder / "clip.wav"),
                    "audio_digest": "",
                    "duration_s": 0.5 + 0.1 * (turn % 9),
                    "text": f"문장 {int(rng.integers(0, 120))}",
                    "label": CLASSES[label] if votes.max() > 5 else None,
                    "votes": votes.tolist(),
                    "label_soft": (votes / 10).tolist(),
                    "split": split,
                    "fold": -1 if split == "test" else session % 3,
                    "group": f"case-s{session:02d}",
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * rng.normal(size=8_000)  # half a second, shared by all clips
    soundfile.write(folder / "clip.wav", wave, 16_000)
    schema = {"label_soft": pa.list_(pa.float32(), 7), "turn": pa.int32(), "fold": pa.int32()}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = {name: pa.array(v, schema.get(name)) for name, v in columns.items()}
    table = pa.table(arrays, metadata=with_classes(CLASSES))
    pq.write_table(table, folder / "manifest.parquet")
    return folder


def make_quality(manifest: Path, home: Path) -> None:
    """The quality report that `prepare` writes for a generated KEMDy20 tree."""
    kemdy20.make(
        home / "tree", sessions=range(1, 4), segments_per_session=12, glitches=False, samples=8_000
    )
    corpus = CorpusConfig(kind="kemdy20", path=str(home / "tree"))
    split = SplitConfig(test=0.34, valid=0.34, folds=2, max_per_class={"neutral": 2})
    (home / "prepared").mkdir()
    prepare([corpus], split, home / "prepared", unpacked=home)
    shutil.copy(home / "prepared" / "quality.json", manifest / "quality.json")


def make_store(manifest: Path, folder: Path, missing: int = 1, noise: float = 2.0) -> Path:
    """Noisy states that depend on the class; the last `missing` test clips have none."""
    rng = np.random.default_rng(2)
    table = pq.read_table(manifest / "manifest.parquet")
    directions = rng.normal(size=(7, AUDIO_DIM + TEXT_DIM))
    clips = []
    for name, shares in zip(
        table["utterance_id"].to_pylist(), table["label_soft"].to_pylist(), strict=True
    ):
        mean = np.asarray(shares) @ directions + noise * rng.normal(size=AUDIO_DIM + TEXT_DIM)
        audio = mean[:AUDIO_DIM] + 0.3 * rng.normal(size=(int(rng.integers(4, 20)), AUDIO_DIM))
        text = mean[AUDIO_DIM:] + 0.3 * rng.normal(size=(int(rng.integers(1, 6)), TEXT_DIM))
        clips.append(Clip(name, audio.astype(np.float32), text.astype(np.float32)))
    with shard_writer(folder, 0, "float32", AUDIO_DIM, TEXT_DIM, {}) as writer:
        writer.append(clips[: len(clips) - missing])
    marker = read_marker(folder, 0)
    assert marker is not None
    info = {
        "dtype": "float32",
        "audio_dim": AUDIO_DIM,
        "text_dim": TEXT_DIM,
        "speech": SPEECH,
        "text": TEXT,
        "settings": FeaturesConfig().identity(),
    }
    finish_store(folder, [marker], info)
    return folder


def make_model(
    manifest: Path, store: Path, folder: Path, preset: str, steps: int, seed: int = 0
) -> Path:
    """A small head trained for a few steps on the training split, with its history."""
    torch.manual_seed(seed)
    features = FeatureStore(store)
    table = pq.read_table(manifest / "manifest.parquet", filters=[("split", "=", "train")])
    batch = collate(features, table["utterance_id"].to_pylist())
    shares = torch.tensor(table["label_soft"].to_pylist())
    model: EmotionModel = build(resolve(preset, SMALL), AUDIO_DIM, TEXT_DIM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    epochs = []
    for step in range(steps):
        output = model(batch.audio, batch.audio_mask, batch.text, batch.text_mask)
        loss = torch.nn.functional.cross_entropy(output.logits, shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        metrics = {"train_loss": value, "valid_loss": value + 0.1, "valid_macro_f1": 1 - value / 2}
        epochs.append({"epoch": float(step + 1), "seconds": 0.5, **metrics})
    losses = [epochs[0]["train_loss"], epochs[-1]["train_loss"]]
    save_model(model, folder, ModelInfo("student", training=training_summary(seed, steps, losses)))
    write_json(folder / "history.json", {"epochs": epochs})
    return folder


def training_summary(seed: int, steps: int, losses: list[float]) -> dict[str, Any]:
    """What `export` writes about a training that beat the majority on validation."""
    return {
        "seed": seed,
        "learning_rate": 1e-2,
        "batch_size": 64,
        "budget": steps,
        "epochs": steps,
        "steps": steps,
        "best_epoch": steps,
        "loss": "soft-cross-entropy",
        "label_source": "shares",
        "train_loss": losses,
        "validation": {
            "uar": 0.6,
            "macro_f1": 0.55,
            "bars": {"uar": 0.25, "macro_f1": 0.08},
            "majority": "neutral",
        },
    }


def make_targets(manifest: Path, folder: Path) -> Path:
    """Soft targets: noise around the vote shares, with a fold for training clips."""
    table = pq.read_table(manifest / "manifest.parquet", filters=[("split", "!=", "test")])
    train = np.array([split == "train" for split in table["split"].to_pylist()])
    shares = np.array(table["label_soft"].to_pylist())
    fold = np.where(train, table["fold"].to_numpy(), -1)
    logits = np.random.default_rng(4).normal(size=shares.shape) + 2 * shares
    write_soft_targets(
        folder / SOFT_TARGETS, table["utterance_id"].to_pylist(), logits, "case", fold
    )
    return folder


def make_search(folder: Path, trials: int = 40) -> dict[str, Any]:
    """Write trials.parquet and study.json in the format of a search; returns its summary."""
    rng = np.random.default_rng(3)
    rows = []
    for number in range(trials):
        params = {
            "distillation.temperature": float(rng.uniform(1, 8)),
            "distillation.weight": float(rng.uniform(0.05, 0.9)),
        }
        failed, stopped = number % 11 == 10, number % 3 == 2
        value = 0.6 - 0.01 * (params["distillation.temperature"] - 3) ** 2
        rows.append(
            {
                "trial": number,
                "key": f"trial-{number}",
                "state": "failed" if failed else "stopped" if stopped else "complete",
                "reason": "",
                "params": json.dumps(params),
                "epochs": 4 if stopped else 20,
                "value": None if failed else value - 0.1 * stopped,
                "cost": None,
                "seconds": 3.5,
                "started": None,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / TRIALS)
    best = max((r for r in rows if r["state"] == "complete"), key=lambda r: r["value"])  # type: ignore[arg-type, return-value]
    states = ("complete", "stopped", "failed", "running")
    study = {
        "study": "case-1234",
        "metric": "valid_macro_f1",
        "mode": "max",
        "second": None,
        "trials": trials,
        "counts": {s: sum(r["state"] == s for r in rows) for s in states},
        "best": {
            "trial": best["trial"],
            "value": best["value"],
            "params": json.loads(str(best["params"])),
            "epochs": 20,
        },
        "epochs": 20,
        "seconds": 90.0,
    }
    write_json(folder / STUDY, study)
    seeds = {"seeds": [1, 2], "metric": "valid_macro_f1", "sd": 0.02, "mean": 0.51}
    winner = {**seeds, "name": "multimodal-search-1", "values": [0.5, 0.52], "params": {}}
    control = {**seeds, "name": "multimodal-search-control", "values": [0.49, 0.51]}
    return {
        **study,
        "winner": "multimodal-search-1",
        "finalists": [winner],
        "control": control,
    }


def artifact(kind: str, path: Path, summary: Mapping[str, Any] | None = None) -> Artifact:
    return Artifact(kind, "0123456789abcdef", path, {"summary": dict(summary or {}), "seconds": 61})
