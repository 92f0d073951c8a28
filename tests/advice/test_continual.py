"""Advice about corpora that are learnt one after another: provoked and followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from helpers.advice import told
from helpers.training_corpus import as_two, make_corpus, make_task, trained
from safetensors.torch import save_file

from multistill.corpora.manifest import classes_of, manifest_schema, read_manifest, write_manifest
from multistill.errors import JobFileError, UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.recipes.continual import steps
from multistill.pipeline.steps.continual import Continual
from multistill.training.consolidation import FISHER, QuadraticPenalty, write_fisher
from multistill.workspace import Artifact, Workspace

JOB = "name: x\nrecipe: continual\ncorpora: [{kind: demo}, {kind: demo, name: other}]\n"
ONE = "name: x\nrecipe: continual\ncorpora: [{kind: demo}]\n"
TRAINED = JOB + "features: {text: {model: klue/bert-base, train: %s}}\n"

JOB_FILES: list[tuple[str, str, list[str]]] = [
    (ONE, "and the job has one with labels; add a second one to `corpora`", [JOB]),
    (
        JOB + "continual: {methods: [ewc, joint, ewc]}\n",
        "`methods` lists `{}` twice; remove one",
        [JOB + "continual: {methods: [ewc, joint]}\n"],
    ),
    (
        JOB + "continual: {ewc: {weights: [1, 1.0]}}\n",
        "`ewc.weights` lists a number twice; remove one",
        [JOB + "continual: {ewc: {weights: [1]}}\n"],
    ),
    (
        JOB + "continual: {head: per-task}\n",
        "and `head` is `per-task`; set `head: shared`, or remove `replay` from `methods`",
        [
            JOB + "continual: {head: shared}\n",
            JOB + "continual: {head: per-task, methods: [finetune, ewc]}\n",
        ],
    ),
    (
        JOB + "continual: {orders: [[demo, othr]]}\n",
        "continual.orders: no corpus with labels is called `{}`; {}",
        [JOB + "continual: {orders: [[demo, other]]}\n"],
    ),
    (
        JOB + "continual: {orders: [[demo]]}\n",
        "is not every corpus of the job once; name each of {}",
        [JOB + "continual: {orders: [[demo, other]]}\n"],
    ),
    (
        JOB + "continual: {orders: [[demo, other], [demo, other]]}\n",
        "continual.orders lists {} twice; remove one",
        [JOB + "continual: {orders: [[demo, other]]}\n"],
    ),
    (
        JOB + "continual: {methods: [lora]}\n",
        "once; set `train: full` of one of them, or remove `{}`",
        [
            TRAINED % "full" + "continual: {methods: [lora]}\n",
            JOB + "continual: {methods: [finetune]}\n",
        ],
    ),
    (
        TRAINED % "last-2" + "continual: {methods: [adapter-untrained]}\n",
        "ones; set `train: full`, or remove `adapter-untrained`",
        [
            TRAINED % "full" + "continual: {methods: [adapter-untrained]}\n",
            TRAINED % "last-2" + "continual: {methods: [adapter]}\n",
        ],
    ),
    (
        JOB + "tasks: [classes, valence]\n",
        "on classes; set `tasks: [classes]`, or another recipe",
        [JOB + "tasks: [classes]\n"],
    ),
    (
        JOB + "continual: {train: {metric: ccc}}\n",
        "continual: `train.metric: ccc` is of dimensions, and this recipe trains classes; choose",
        [JOB + "continual: {train: {metric: uar}}\n"],
    ),
    (
        JOB + "continual: {train: {loss: mse}}\n",
        "of `ewc` is of the softmax of logits; choose another loss, or remove `ewc`",
        [
            JOB + "continual: {train: {loss: focal}}\n",
            JOB + "continual: {methods: [replay], train: {loss: one-vs-rest}}\n",
            JOB + "continual: {methods: [finetune], train: {loss: mse}}\n",
        ],
    ),
    (
        JOB + "protocol: cross-corpus\n",
        "in every fold; set `by: session`, or `holdout`",
        [JOB + "protocol: {kind: k-fold, by: session}\n", JOB + "protocol: holdout\n"],
    ),
    (
        JOB + "protocol: {kind: k-fold, by: session, repeats: 2}\n",
        "use `repeats: 1`, and `seeds` for repeated trainings",
        [JOB + "protocol: {kind: k-fold, by: session}\nseeds: 2\n"],
    ),
    (
        JOB + "features: {augmentation: {copies: 2, noise_db: [10, 30]}}\n",
        "reads them one after another; remove the section",
        [JOB],
    ),
    (
        TRAINED % "{kind: lora, layers: 2, untrained: true}" + "continual: {methods: [finetune]}\n",
        "the checkpoint below them; remove one of the two",
        [
            TRAINED % "{kind: lora, untrained: true}" + "continual: {methods: [finetune]}\n",
            TRAINED % "{kind: lora, layers: 2}" + "continual: {methods: [finetune]}\n",
        ],
    ),
]


@pytest.mark.parametrize(
    ("wrong", "piece"),
    [
        ("train: {loss: one-vs-rest}", "information of `ewc` is of the softmax"),
        ("train: {augmentation: {only: [nobody], noise: 0.1}}", "`nobody` is not a class"),
        ("model: small-audio-teacher, train: {augmentation: {word_swap: 0.2}}", "text states"),
        ("model: paper-fe2e, train: {workers: 2}", "chunk_normalization: layer"),
    ],
)
def test_trainings_are_checked_as_those_of_other_recipes(wrong: str, piece: str) -> None:
    features = "features: {speech: log-mel}\n"
    with pytest.raises(JobFileError) as refused:
        jobfile.parse(JOB + features + f"continual: {{{wrong}}}\n", "x.yaml")
    assert piece in str(refused.value)


def test_the_steps_that_an_evaluation_reads() -> None:
    """A stage that reads what no stage before it makes could not even be planned."""
    text = JOB + "evaluation: {robustness: true, opensmile: [egemaps]}\n"
    job = jobfile.parse(text, "x.yaml")
    made: set[str] = set()
    for step in steps(job, Workspace(Path("x"))):
        assert set(step.reads()) <= made, step.name
        made.add(step.artifact)


def test_mesm_without_transcripts(tmp_path: Path) -> None:
    two = as_two(make_corpus(tmp_path / "corpus"), tmp_path / "two")
    rows = [{**row, "text": ""} for row in read_manifest(two[0]).to_pylist()]
    for row in rows:
        row["corpus"] = {"first": "demo", "second": "other"}[row["corpus"]]
    schema = manifest_schema(classes_of(read_manifest(two[0])))
    (tmp_path / "silent").mkdir()
    write_manifest(pa.Table.from_pylist(rows, schema=schema), tmp_path / "silent")
    manifest = Artifact("prepare", "x", tmp_path / "silent", {"summary": {}})

    def step(preset: str) -> None:
        text = JOB + f"features: {{speech: log-mel}}\ncontinual: {{model: {preset}}}\n"
        job = jobfile.parse(text, "x.yaml")
        Continual(job, Workspace(tmp_path)).preflight({"manifest": manifest})

    with told("which computes all, or corpora with transcripts", UsageError):
        step("small-mesm")
    step("small-fe2e")


@pytest.mark.parametrize(("wrong", "advice", "right"), JOB_FILES)
def test_job_files(wrong: str, advice: str, right: list[str]) -> None:
    with told(advice, JobFileError):
        jobfile.parse(wrong, "x.yaml")
    for text in right:
        jobfile.parse(text, "x.yaml")


def test_a_part_without_a_corpus(tmp_path: Path) -> None:
    def step(parts: dict[str, str]) -> None:
        rows = read_manifest(two[0]).to_pylist()
        for row in rows:
            row["split"] = parts.get(row["session"], row["split"])
            row["corpus"] = {"first": "demo", "second": "other"}[row["corpus"]]
        folder = tmp_path / str(len(parts))
        folder.mkdir()
        schema = manifest_schema(classes_of(read_manifest(two[0])))
        write_manifest(pa.Table.from_pylist(rows, schema=schema), folder)
        manifest = Artifact("prepare", "x", folder, {"summary": {}})
        Continual(job, Workspace(tmp_path)).preflight({"manifest": manifest})

    job = jobfile.parse(JOB, "x.yaml")
    two = as_two(make_corpus(tmp_path / "corpus"), tmp_path / "two")
    rows = read_manifest(two[0]).to_pydict()
    valid = [s for s, part in zip(rows["session"], rows["split"], strict=True) if part == "valid"]
    with told("use fewer `protocol.folds`, or set another `split.seed`", UsageError):
        step(dict.fromkeys(valid, "train"))
    step({})


def test_fisher_information_of_another_model(tmp_path: Path) -> None:
    parameters: dict[str, Any] = {"a": torch.nn.Parameter(torch.zeros(2))}
    save_file({"a": torch.zeros(3)}, tmp_path / FISHER)
    with told("in the model; remove that folder and run the job again"):
        QuadraticPenalty(parameters, tmp_path, 1.0)
    save_file({"a": torch.zeros(2)}, tmp_path / FISHER)
    QuadraticPenalty(parameters, tmp_path, 1.0)


def test_a_corpus_without_training_clips(tmp_path: Path) -> None:
    two = as_two(make_corpus(tmp_path / "corpus"), tmp_path / "two")
    trained(replace(make_task(two, epochs=1), role="teacher"), tmp_path / "model")
    (tmp_path / "out").mkdir()
    with told("raise the share of train, or remove `ewc` from `continual.methods`"):
        write_fisher(tmp_path / "model", *two, "third", tmp_path / "out")
    write_fisher(tmp_path / "model", *two, "first", tmp_path / "out", clips=3)
