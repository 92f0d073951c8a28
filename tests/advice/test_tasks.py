"""Advice about tasks and dimensions: provoked and followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.advice import says, told
from helpers.corpora import write_table
from helpers.training_corpus import make_corpus, make_task, run, trained

from multistill.config import CorpusConfig, EvaluationConfig, SplitConfig, TasksConfig
from multistill.corpora.loaders import load
from multistill.corpora.manifest import read_manifest, write_manifest
from multistill.corpora.prepare import prepare
from multistill.distillation.stage import soft_targets
from multistill.errors import JobFileError
from multistill.evaluation.dimensions import DimensionScorer
from multistill.evaluation.evaluate import Candidate, EvaluatedFold, evaluate
from multistill.metrics.intervals import Clusters, Resampling
from multistill.models.spec import ModelSpec
from multistill.pipeline import jobfile
from multistill.training.data import TrainingData
from multistill.training.task import TrainingTask

JOB = "name: x\ncorpora: [{kind: demo}]\n%s\n"
TWO = "name: x\ncorpora: [{kind: demo}, {kind: demo, name: other}]\n%s\n"
TABLE = "name: x\ncorpora: [{kind: %s, path: t%s}]\n"
DIMENSION = "tasks: [classes, valence]\n"
ALONE = "tasks: [valence, arousal]\n"
LISTED = [
    (
        JOB % "tasks: [classes, {valence: 0.5}]",
        "a list of tasks has names only; write weights as {classes: 1.0, valence: 0.5}",
        [JOB % "tasks: {classes: 1.0, valence: 0.5}"],
    ),
    (
        JOB % "tasks: [classes, valence, classes]",
        "stands in the list of tasks twice; remove one",
        [JOB % DIMENSION],
    ),
    (JOB % "tasks: []", "no task is left; name `classes`", [JOB % "tasks: classes"]),
    (
        TABLE % ("emodb", ", scale: [1, 7]"),
        "is known; remove `scale`",
        [TABLE % ("emodb", "")],
    ),
    (
        TABLE % ("table", ", scale: [7, 1]"),
        "is empty or reversed; write the lowest value first",
        [TABLE % ("table", ", scale: [1, 7]")],
    ),
    (
        JOB % "teacher: {train: {metric: ccc}}",
        "`train.metric: ccc` is of dimensions, and the job has none; add them",
        [JOB % ("teacher: {train: {metric: ccc}}\n" + DIMENSION), JOB % ""],
    ),
    (
        JOB % "search: {metric: ccc}",
        "search.metric: ccc is of dimensions, and the job has none; add them",
        [JOB % ("search: {metric: ccc}\n" + DIMENSION), JOB % "search: {metric: uar}"],
    ),
    (
        JOB % (DIMENSION + "teacher: {train: {accumulation: 2}}"),
        "is over the batch that one worker sees; set `workers: 1`, `accumulation: 1`",
        [JOB % (DIMENSION + "teacher: {train: {accumulation: 2, dimension_loss: mse}}")],
    ),
    (
        JOB % (DIMENSION + "search: {workers_per_trial: 2}"),
        "worker sees; set `workers_per_trial: 1` and search no `train.accumulation`",
        [JOB % (DIMENSION + "search: {workers_per_trial: 1}")],
    ),
    (
        JOB % (ALONE + "teacher: {train: {metric: uar}}"),
        "is of classes, and `tasks` has none; use `ccc` or `loss`, or add `classes`",
        [
            JOB % (ALONE + "teacher: {train: {metric: ccc}}"),
            JOB % (DIMENSION + "teacher: {train: {metric: uar}}"),
        ],
    ),
    (
        JOB % (ALONE + "teacher: {train: {oversample: true}}"),
        "are of classes, and `tasks` has none; remove them, or add `classes`",
        [JOB % ALONE, JOB % (DIMENSION + "teacher: {train: {oversample: true}}")],
    ),
    (
        JOB % (ALONE + "search: true"),
        "is of classes, and `tasks` has none; set `search.metric: ccc`",
        [JOB % (ALONE + "search: {metric: ccc}")],
    ),
    (
        JOB % (DIMENSION + "protocol: {kind: k-fold, repeats: 2}"),
        "use `repeats: 1`, or remove the dimensions",
        [JOB % (DIMENSION + "protocol: k-fold"), JOB % "protocol: {kind: k-fold, repeats: 2}"],
    ),
    (
        JOB % "protocol: {kind: k-fold, repeats: 2}\nevaluation: {robustness: true}",
        "use `repeats: 1`, or remove `robustness`",
        [
            JOB % "protocol: {kind: k-fold, repeats: 1}\nevaluation: {robustness: true}",
            JOB % "protocol: {kind: k-fold, repeats: 2}",
        ],
    ),
    (
        TWO % "protocol: cross-corpus\nevaluation: {robustness: true}",
        "by the models of every corpus; remove `robustness`",
        [TWO % "protocol: cross-corpus"],
    ),
    (
        JOB % (ALONE + "evaluation: {robustness: true}"),
        "are scored by class, and `tasks` has none; remove them, or add `classes`",
        [JOB % ALONE, JOB % (DIMENSION + "evaluation: {robustness: true}")],
    ),
    (
        TWO % (ALONE + "protocol: cross-corpus"),
        "use `protocol: {kind: leave-one-out, by: corpus}`, or add `classes`",
        [
            TWO % (ALONE + "protocol: {kind: leave-one-out, by: corpus}"),
            TWO % (DIMENSION + "protocol: cross-corpus"),
        ],
    ),
    (
        JOB % (ALONE + "search: {metric: ccc}\ntracking: {champion: {}}"),
        "is of classes, and `tasks` has none; set `metric: validation.ccc`",
        [JOB % (ALONE + "search: {metric: ccc}\ntracking: {champion: {metric: validation.ccc}}")],
    ),
    (
        JOB % "search: true\ntracking: {champion: {metric: validation.ccc}}",
        "tracking.champion: validation.ccc is of dimensions, and the job has none; add them",
        [JOB % (DIMENSION + "search: true\ntracking: {champion: {metric: validation.ccc}}")],
    ),
    (
        JOB % ("recipe: features-only\n" + DIMENSION + "protocol: {kind: k-fold, repeats: 2}"),
        "use `repeats: 1`, or remove the dimensions",
        [JOB % ("recipe: features-only\n" + DIMENSION + "protocol: k-fold")],
    ),
    (
        TWO % "recipe: features-only\nprotocol: cross-corpus\nsplit: {by: column}",
        "tests every clip; set `protocol: holdout`, or `split.by: session`",
        [TWO % "recipe: features-only\nprotocol: cross-corpus\nsplit: {by: session}"],
    ),
    (
        JOB % (ALONE + "label_shares: true"),
        "`tasks` has none; remove `label_shares`, or add `classes`",
        [JOB % ALONE, JOB % (DIMENSION + "label_shares: true")],
    ),
    (
        JOB % (ALONE + "split: {max_per_class: {happy: 9}}"),
        "split.max_per_class: `tasks` has no classes; remove it, or add `classes`",
        [JOB % ALONE, JOB % (DIMENSION + "split: {max_per_class: {happy: 9}}")],
    ),
]


@pytest.mark.parametrize(("wrong", "advice", "followed"), LISTED)
def test_advice_about_tasks_of_a_job_file(wrong: str, advice: str, followed: list[str]) -> None:
    with told(advice, JobFileError):
        jobfile.parse(wrong, "x.yaml")
    for text in followed:
        jobfile.parse(text, "x.yaml")


def test_values_that_a_job_cannot_use(tmp_path: Path) -> None:
    parts = ("train", "train", "valid", "valid", "test", "test")

    def lines(*values: str) -> list[str]:
        labels = ("sad", "happy") * 3
        columns = enumerate(zip(labels, values, parts, strict=True))
        return [f"{n}.wav,{label},p{n},{value},{part}" for n, (label, value, part) in columns]

    def prepared(*values: str, dimension: str = "valence", **corpus: object) -> None:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        table = write_table(out, lines(*values), "audio_path,label,speaker,valence,split")
        config = CorpusConfig(kind="table", path=str(table), **corpus)
        tasks = TasksConfig.model_validate(["classes", dimension] if dimension else ["classes"])
        prepare([config], SplitConfig(by="column"), out, tasks=tasks, unpacked=out)

    with told("off the scale (first: {}); correct {}, or set `scale` of the corpus"):
        prepared("1", "7", "2", "3", "4", "5")
    prepared("1", "5", "2", "3", "4", "5")
    prepared("1", "7", "2", "3", "4", "5", scale=[1, 7])
    with told("none of which differ, so nothing can be learnt or measured; add values") as refused:
        prepared("1", "5", "2", "3", "", "")
    says("remove `{}` from `tasks`", refused.value)
    prepared("1", "5", "2", "3", "4", "2")
    prepared("1", "5", "2", "3", "", "", dimension="")


def test_a_table_without_the_only_tasks_of_a_job(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["0.wav,sad,p0,2"], "audio_path,label,speaker,V")
    tasks = TasksConfig(valence=1.0)

    def read(**more: object) -> int:
        return len(list(load(CorpusConfig(kind="table", path=str(table), **more), tasks=tasks)))

    with told("and the job has no other tasks; add one, or name its column in `columns`"):
        read()
    assert read(columns={"valence": "V"}) == 1
    write_table(tmp_path, ["0.wav,sad,p0,2"], "audio_path,label,speaker,valence")
    assert read() == 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_corpus(tmp_path_factory.mktemp("tasks"))


def task_of(corpus: tuple[Path, Path], *dimensions: str, **train: object) -> TrainingTask:
    base = make_task(corpus, epochs=1, **train)
    tasks = {"classes": 1.0, **dict.fromkeys(dimensions, 1.0)}
    return replace(base, spec=replace(base.spec, dimensions=dimensions), tasks=tasks)


def test_models_and_targets_of_other_dimensions(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    both, one = task_of(corpus, "valence", "arousal"), task_of(corpus, "valence")
    with told("and its model predicts {}; give each of these a weight in `tasks`"):
        replace(both, tasks=one.tasks)
    with told("model: num_classes must be at least 1, not {}; 0 is for a model with dimensions"):
        ModelSpec("audio", num_classes=0)
    assert ModelSpec("audio", num_classes=0, dimensions=("valence",)).outputs == 1

    folders = [tmp_path / "both", tmp_path / "one"]
    for task, folder in zip((both, one), folders, strict=True):
        trained(task, folder)
    manifest, store = corpus
    out = tmp_path / "targets.parquet"
    with told("the teacher in {} has the dimensions {}, and {} has {}; use teachers of the same"):
        soft_targets(manifest.parent, store, folders, {}, False, False, out)
    soft_targets(manifest.parent, store, folders[:1], {}, False, False, out)
    student = {"soft_targets": str(out), "distillation": jobfile.parse(JOB % "", "x").distillation}
    with told("have the dimensions {}, and the model `{}` has {}; use soft targets and a model"):
        TrainingData.open(replace(one, **student))
    assert TrainingData.open(replace(both, **student)).train.teacher_dimensions is not None

    def scored(*dimensions: str) -> None:
        evaluate(
            [EvaluatedFold(manifest.parent, [Candidate("a", "student", [folders[1]])])],
            store,
            EvaluationConfig(resamples=100, latency_clips=0),
            tmp_path,
            dimensions=dimensions,
        )

    with told("has the dimensions {}, and the job's tasks have {}; use a model of the same job"):
        scored("valence", "arousal")
    scored("valence")


def test_validation_without_values(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    table = read_manifest(corpus[0])
    column = table.schema.get_field_index("valence")
    pairs = zip(table["split"].to_pylist(), table["valence"].to_pylist(), strict=True)
    values = pa.array([3.0 if part == "valid" else value for part, value in pairs], pa.float32())
    constant = table.set_column(column, table.schema.field(column), values)
    manifest = write_manifest(constant, tmp_path)
    task = replace(task_of(corpus, "valence", metric="ccc"), manifest=str(manifest))
    with told("so there is no CCC to choose epochs by; use `train.metric: loss`"):
        run(task, tmp_path / "a")
    run(task.with_train(metric="loss"), tmp_path / "b")


def test_test_clips_without_a_value_of_a_dimension() -> None:
    clusters = Clusters("speaker", np.arange(4), 4)

    def scorer(truth: np.ndarray) -> DimensionScorer:
        means = np.full((4, 1), 3.0)
        return DimensionScorer(
            "valence", truth, means, clusters, Resampling(clusters, 10, 1), 0.95, None
        )

    with told("look into quarantine.parquet of the features, or remove it from `tasks`"):
        scorer(np.full((4, 1), np.nan))
    assert scorer(np.array([[1.0], [np.nan], [3.0], [4.0]])).known.sum() == 3
