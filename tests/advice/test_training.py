"""Advice of trainings, their targets and their checkpoints: provoked and followed."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.advice import says, told
from helpers.training_corpus import make_corpus, make_task, run, trained, with_states, with_teacher

from multistill.config import CLASSES, DistillationConfig
from multistill.config.models import STATE_WEIGHTS
from multistill.corpora.manifest import read_manifest, with_classes, write_manifest
from multistill.distillation.files import SOFT_TARGETS, STATES
from multistill.distillation.stage import soft_targets
from multistill.distillation.targets import read_states, write_soft_targets, write_states
from multistill.errors import MultistillError, UsageError
from multistill.features.statistics import (
    TENSORS,
    compute_statistics,
    training_statistics,
    write_statistics,
)
from multistill.features.store import FeatureStore
from multistill.models.sequences import RaggedStates
from multistill.pipeline import jobfile
from multistill.pipeline.runner import find_artifact
from multistill.pipeline.steps.distill import Distill
from multistill.pipeline.steps.training import Teacher
from multistill.tracking.logger import NullLogger
from multistill.training import worker
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.distributed import ProcessGroup
from multistill.training.events import EventListener
from multistill.training.loop import fit
from multistill.workspace import Artifact, Workspace, read_json

Corpus = tuple[Path, Path]


def never() -> bool:
    """In place of a `Watch`: nothing asks for the work back."""
    return False


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


class Distilled:
    """A finished distill stage in a workspace, and how the next run makes it again."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        job = jobfile.parse(
            "name: x\ncorpora: [{kind: demo}]\ndistillation: {hint_weight: 1.0}\n", "x.yaml"
        )
        self.workspace = Workspace(folder).open()
        self.step = Distill(job, self.workspace)
        self.task = make_task(corpus, epochs=1)
        self.runs = 0
        self.run()

    def run(self) -> None:
        """What `multistill run` does with the stage."""
        if find_artifact(self.workspace, self.step, "0" * 16) is None:
            self.runs += 1
            shutil.rmtree(self.workspace.folder("distill", "0" * 16), ignore_errors=True)
            self.workspace.make("distill", "0" * 16, self._build)

    def _build(self, out: Path) -> None:
        self.student = with_states(self.task, out / SOFT_TARGETS, hint_weight=1.0)

    @property
    def path(self) -> Path:
        return self.workspace.folder("distill", "0" * 16) / SOFT_TARGETS

    def train(self, state: Path) -> None:
        run(replace(self.student, soft_targets=str(self.path)), state)


def lacking(path: Path, *, pooled: bool) -> None:
    """Write the file without one training utterance."""
    if pooled:
        stored = read_states(path)
        write_states(path, stored.rows[1:], stored.teacher[1:], stored.pooled[1:])
    else:
        ids = pq.read_table(path)["utterance_id"].to_pylist()[1:]
        write_soft_targets(path, ids, np.zeros((len(ids), 7)), "t", np.zeros(len(ids)))


def test_classes_of_another_job(tmp_path: Path, corpus: Corpus) -> None:
    distilled = Distilled(corpus, tmp_path / "ws")
    manifest = shutil.copytree(corpus[0].parent, tmp_path / "other") / corpus[0].name
    renamed = read_manifest(manifest).replace_schema_metadata(with_classes(CLASSES[::-1]))
    write_manifest(renamed, manifest.parent)
    student = replace(distilled.student, manifest=str(manifest), soft_targets=str(distilled.path))
    with told("; use soft targets and a manifest of the same job"):
        run(student, tmp_path / "a")
    trained(distilled.task, tmp_path / "teacher")
    targets = (corpus[1], [tmp_path / "teacher"], {}, False, False, tmp_path / "targets.parquet")
    with told("; use a teacher and a manifest of the same job"):
        soft_targets(manifest, *targets)
    soft_targets(corpus[0], *targets)
    two = replace(distilled.task, spec=replace(distilled.task.spec, num_classes=2))
    with told("; use a model and a manifest of the same job"):
        run(two, tmp_path / "b")
    distilled.train(tmp_path / "c")


def not_finite(path: Path) -> None:
    ids = pq.read_table(path)["utterance_id"].to_pylist()
    write_soft_targets(path, ids, np.full((len(ids), 7), np.nan), "t", np.zeros(len(ids)))


@pytest.mark.parametrize(
    ("name", "damage", "advice"),
    [
        (SOFT_TARGETS, Path.unlink, "{} is missing; run the job again"),
        (
            SOFT_TARGETS,
            lambda path: path.write_bytes(b""),
            "{} is damaged ({}); remove the folder {} and run the job again",
        ),
        (
            STATES,
            lambda path: path.write_bytes(b""),
            "{} is damaged ({}); remove it and run the job again",
        ),
        (
            SOFT_TARGETS,
            lambda path: lacking(path, pooled=False),
            "the soft targets in {} lack {} of {} training utterances (first: {}); remove that "
            "file and run the job again",
        ),
        (
            SOFT_TARGETS,
            not_finite,
            "are not finite for {} utterances (first: {}); remove that file and run the job again",
        ),
        (
            STATES,
            lambda path: lacking(path.with_name(SOFT_TARGETS), pooled=True),
            "the teacher's states in {} lack {} of {} training utterances (first: {}); "
            "remove that file and run the job again",
        ),
    ],
)
def test_targets_of_a_teacher(
    corpus: Corpus, tmp_path: Path, name: str, damage: Any, advice: str
) -> None:
    distilled = Distilled(corpus, tmp_path / "ws")
    file = distilled.path.with_name(name)
    damage(file)
    with told(advice) as refused:
        distilled.train(tmp_path / "a")
    if "remove" in advice:
        assert str(file) in str(refused.value)
        distilled.run()
        assert distilled.runs == 1, "a damaged file is not looked into by every run"
        file.unlink()
    distilled.run()
    assert distilled.runs == 2
    distilled.train(tmp_path / "b")


def test_pooled_states_that_no_stage_wrote(corpus: Corpus, tmp_path: Path) -> None:
    student = with_teacher(make_task(corpus, epochs=1), tmp_path / SOFT_TARGETS, 0.0)
    student = replace(student, distillation=DistillationConfig(weight=0.0, hint_weight=1.0))
    with told("`distillation` on representations need it; run a job that sets one of them"):
        run(student, tmp_path / "a")
    for key in STATE_WEIGHTS:
        job = jobfile.parse(
            f"name: x\ncorpora: [{{kind: demo}}]\ndistillation: {{{key}: 1.0}}\n", "x.yaml"
        )
        assert Distill(job, Workspace(tmp_path)).config()["states"]
    run(
        with_states(make_task(corpus, epochs=1), tmp_path / SOFT_TARGETS, hint_weight=1.0), tmp_path
    )


def test_sequences_that_no_stage_wrote(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / SOFT_TARGETS
    student = with_states(make_task(corpus, epochs=1), path, hint_weight=1.0)
    student = replace(student, distillation=DistillationConfig(sequence_weight=1.0))
    with told("needs them; run a job that sets it, with a teacher that reads the same"):
        run(student, tmp_path / "a")
    stored = read_states(path)
    ragged = RaggedStates(np.ones((len(stored.rows), 3), np.float16), np.ones_like(stored.rows))
    write_states(path, stored.rows, stored.teacher, stored.pooled, {"text": ragged})
    run(student, tmp_path / "b")


def test_a_task_with_half_a_teacher(corpus: Corpus, tmp_path: Path) -> None:
    task = make_task(corpus)
    for half in ({"soft_targets": "x"}, {"distillation": DistillationConfig()}):
        with told("set both for a distilled student, neither for any other model", UsageError):
            replace(task, **half)
    replace(task, soft_targets="x", distillation=DistillationConfig())
    with_teacher(task, tmp_path / SOFT_TARGETS, 0.5)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_task_with_an_impossible_share_of_labels(corpus: Corpus, share: float) -> None:
    with told("set a share above 0 and at most 1", UsageError):
        replace(make_task(corpus), label_share=share)
    assert replace(make_task(corpus), label_share=1.0).label_share == 1.0


def test_a_task_without_a_teacher_for_the_clips_without_label(
    corpus: Corpus, tmp_path: Path
) -> None:
    with told("set `soft_targets` and `distillation`, or `unlabelled: false`", UsageError):
        replace(make_task(corpus), unlabelled=True)
    replace(make_task(corpus), unlabelled=False)
    replace(with_teacher(make_task(corpus), tmp_path / SOFT_TARGETS, 0.5), unlabelled=True)


def test_no_training_clip_with_features(tmp_path: Path) -> None:
    manifest, store = make_corpus(tmp_path / "few", rows=40, quarantined=2)
    task = make_task((manifest, store))
    ids = FeatureStore(store).ids
    table = pq.read_table(manifest)
    others = [name for name in table["utterance_id"].to_pylist() if name not in ids]
    rows = table.to_pylist()
    lost = [row | {"split": "train" if row["utterance_id"] in others else "test"} for row in rows]
    pq.write_table(table.from_pylist(lost, schema=table.schema), manifest)
    with told("lower `split.test` or `split.valid`), or look into its quarantine.parquet"):
        TrainingData.open(task)
    pq.write_table(table, manifest)
    assert len(TrainingData.open(task).train)


def test_one_fold(corpus: Corpus, tmp_path: Path) -> None:
    manifest, _ = corpus
    table = pq.read_table(manifest)
    one = [row | {"fold": min(row["fold"], 0)} for row in table.to_pylist()]
    (tmp_path / "one").mkdir()
    pq.write_table(table.from_pylist(one, schema=table.schema), tmp_path / "one/manifest.parquet")

    def folds(path: Path, targets: str) -> list[int]:
        text = f"name: x\ncorpora: [{{kind: demo}}]\ndistillation: {{targets: {targets}}}\n"
        step = Teacher(jobfile.parse(text, "x.yaml"), Workspace(tmp_path))
        return step.folds({"manifest": Artifact("prepare", "0", path, {})})

    with told("split by another key, or set `distillation.targets: in-sample`", UsageError):
        folds(tmp_path / "one", "out-of-fold")
    assert folds(tmp_path / "one", "in-sample") == []
    assert len(folds(manifest, "out-of-fold")) == 4


def test_out_of_memory(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multistill.training import loop

    real = loop.training_step

    def small(batches: Any, *arguments: Any, **more: Any) -> Any:
        batches = list(batches)
        if max(batch.states.audio_mask.numel() for batch in batches) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(iter(batches), *arguments, **more)

    monkeypatch.setattr(loop, "training_step", small)
    monkeypatch.setattr(loop, "CPU_MICRO_BATCH_VALUES", 16 * 10**6)
    with told("set `train.batch_frames` (padded frames computed at the same time) or lower it"):
        run(make_task(corpus, epochs=1), tmp_path)
    with told("set `train.batch_frames` (padded frames computed at the same time) or lower it"):
        run(make_task(corpus, epochs=1, batch_frames=10**6), tmp_path)
    assert len(run(make_task(corpus, epochs=1, batch_frames=160), tmp_path)) == 1


def test_a_tie_of_all_votes(tmp_path: Path) -> None:
    manifest, store = make_corpus(tmp_path / "ties")
    table = pq.read_table(manifest)
    rows = [r | ({"label": None} if r["split"] == "valid" else {}) for r in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, schema=table.schema), manifest)
    with told("cannot be measured; use `metric: loss`"):
        run(make_task((manifest, store), epochs=1), tmp_path / "a")
    assert run(make_task((manifest, store), epochs=1, metric="loss"), tmp_path / "b")


def test_the_checkpoint_of_another_training(corpus: Corpus, tmp_path: Path) -> None:
    run(make_task(corpus, epochs=1), tmp_path / "state")
    other = make_task(corpus, epochs=1, learning_rate=1e-3)
    with told("belongs to another training: {}; remove the folder to start from scratch"):
        run(other, tmp_path / "state")
    shutil.rmtree(tmp_path / "state")
    assert len(run(other, tmp_path / "state")) == 1


def test_a_lost_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    task = make_task(corpus, epochs=1)
    run(task, tmp_path / "state")
    for path in (tmp_path / "state").rglob("*.safetensors"):
        path.write_bytes(b"")
    with told("no trained weights: {}; remove {} and run the job again") as refused:
        best_weights(tmp_path / "state")
    shutil.rmtree(str(refused.value).split("remove ")[1].split(" and run")[0])
    run(task, tmp_path / "state")
    assert best_weights(tmp_path / "state")


def test_values_that_are_not_finite(corpus: Corpus, tmp_path: Path) -> None:
    wild = make_task(corpus, epochs=2, learning_rate=1e30)
    with told("check these clips, or lower `train.learning_rate`") as refused:
        run(wild, tmp_path / "a")
    report = str(refused.value).split("are in ")[1].split(";")[0]
    ids = read_json(Path(report))["utterance_ids"]
    assert set(ids) <= set(TrainingData.open(wild).train.ids)
    whole = make_task(corpus, epochs=1, learning_rate=1e38, batch_size=512)
    with told("check its features, or lower `train.learning_rate`"):
        run(whole, tmp_path / "b")
    assert len(run(make_task(corpus, epochs=2), tmp_path / "c")) == 2


def test_a_full_disk(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, events = make_task(corpus, epochs=2), SimpleNamespace(sent=[])
    events.put = events.sent.append
    folder = task.folder(tmp_path)

    def train() -> list[dict[str, Any]]:
        events.sent.clear()
        worker._train(task, folder, ProcessGroup(), torch.device("cpu"), events, never)
        return list(events.sent)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "export", full)
        reason = train()[-1]["reason"]
    says("free some space and run the same command again: {} are kept", reason)
    started, *_, finished = train()
    assert (started["epoch"], finished["kind"]) == (2, "finished")


def test_workers_that_die_and_folders_that_are_not_shared(corpus: Corpus, tmp_path: Path) -> None:
    task = make_task(corpus, epochs=1)
    listener = EventListener([task], tmp_path, NullLogger())
    with told("finished epochs are kept, run the same command again to resume"):
        listener.raise_error(RuntimeError("worker died"), 2)
    with told("must be on storage that every node of the cluster can access"):
        listener.check_results([task])
    put = SimpleNamespace(put=lambda event: None)
    worker._train(task, task.folder(tmp_path), ProcessGroup(), torch.device("cpu"), put, never)
    listener.check_results([task])


def test_a_group_of_several_ranks() -> None:
    with told("a process group of several ranks needs `all_reduce`", ValueError):
        ProcessGroup(0, 2)
    assert ProcessGroup(0, 2, lambda tensor: tensor).size == 2


def test_resuming_after_a_crash(corpus: Corpus, tmp_path: Path) -> None:
    """What `run the same command again to resume` promises."""
    task = make_task(corpus, epochs=2)
    assert next(fit(task, state_dir=tmp_path, device="cpu")).epoch == 1
    assert [report.epoch for report in run(task, tmp_path)] == [2]


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_statistics_that_are_damaged_or_of_another_encoder(
    corpus: Corpus, tmp_path: Path, damage: str
) -> None:
    manifest, features = corpus
    folder = tmp_path / "statistics"
    compute_statistics(manifest, features, folder)
    task = replace(make_task(corpus), statistics=str(folder))
    data = TrainingData.open(task)
    intact = data.statistics(task)
    if damage == "cut":
        (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-9])
    else:
        write_statistics(replace(intact, encoders={"speech": {"name": "another"}}), folder)
    with pytest.raises(MultistillError) as refused:
        data.statistics(task)
    if damage == "cut":
        says("are missing or damaged ({}); remove the folder and run", refused.value)
    else:
        says("the features are of {}; remove that folder and run the job again", refused.value)
    shutil.rmtree(folder)
    compute_statistics(manifest, features, folder)
    assert data.statistics(task).encoders == intact.encoders


def test_no_training_utterance_has_features(corpus: Corpus, tmp_path: Path) -> None:
    store = FeatureStore(corpus[1])
    with pytest.raises(MultistillError) as refused:
        training_statistics(store, ["quarantined"])
    says("no training utterance has features in {}; see its quarantine", refused.value)
    assert str(store.folder) in str(refused.value)
    assert training_statistics(store, ["quarantined", *store.ids[:2]]).clips == 2
