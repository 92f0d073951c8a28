"""Leaks between the folds of a cross-validation, planted where they could happen.

| planted | found by |
| --- | --- |
| a speaker or a session in two parts | `prepare` (tests/corpora), and `evaluate` here |
| a transcript in two parts | counted, and warned of in the report |
| a test clip's label in the teacher's targets | every training that reads them |
| a model of another fold, or one that read its statistics or targets | `distill`, `evaluate` |
| a search that read test clips | its trials; its folds: tests/pipeline/steps/test_search.py |
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.advice import told
from helpers.corpora import write_table
from helpers.training_corpus import make_corpus, make_task, run, trained, with_teacher

from multistill.config import (
    CorpusConfig,
    EvaluationConfig,
    ProtocolConfig,
    SearchConfig,
    SplitConfig,
)
from multistill.corpora.manifest import read_manifest, write_manifest
from multistill.corpora.prepare import prepare
from multistill.distillation.targets import read_soft_targets, write_soft_targets
from multistill.evaluation.evaluate import Candidate, EvaluatedFold, evaluate
from multistill.search.space import apply
from multistill.search.spec import SearchSpec
from multistill.training.data import TrainingData
from multistill.training.model_store import ModelStore
from multistill.workspace import Workspace

Corpus = tuple[Path, Path]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_test_clip_in_the_soft_targets(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "targets.parquet"
    student = with_teacher(make_task(corpus, epochs=1), path, 0.5)
    clean = read_soft_targets(path).ids
    tested = read_manifest(corpus[0]).filter(pa.compute.field("split") == "test")
    ids = [*clean, tested["utterance_id"][0].as_py()]
    write_soft_targets(path, ids, np.zeros((len(ids), 7)), "t", np.full(len(ids), -1))
    with told("so they are of another fold or split; remove that file and run the job again"):
        run(student, tmp_path / "a")
    path.unlink()
    run(with_teacher(make_task(corpus, epochs=1), path, 0.5), tmp_path / "b")


@pytest.mark.parametrize("planted", ["manifest", "statistics", "soft_targets"])
@pytest.mark.parametrize("role", ["teacher", "student", "search-1"])
def test_a_model_that_read_another_fold(tmp_path: Path, planted: str, role: str) -> None:
    """Its clips, its standardisation or its teacher; a search's winner is a model like others."""
    workspace = Workspace(tmp_path / "ws").open()
    store = ModelStore(workspace)
    own = {name: f"{name}-1" for name in ("manifest", "statistics", "soft_targets")}
    if role == "teacher":
        del own["soft_targets"]  # it has none: planted targets would be an input all the same

    def made(number: int, inputs: dict[str, str]) -> dict[str, dict[str, object]]:
        name = f"{number:016d}"
        workspace.make("models", name, lambda out: {}, config={}, inputs=inputs)
        return {role: {"fingerprint": name}}

    expected = {name: ["of another seed", f"{name}-1"] for name in (*own, "soft_targets")}
    store.refuse_other_data(made(1, own), expected)
    with told("so it may know these clips; remove the folder of its stage and run the job again"):
        store.refuse_other_data(made(2, own | {planted: f"{planted}-2"}), expected)


def test_a_trial_whose_targets_hold_a_test_clip(corpus: Corpus, tmp_path: Path) -> None:
    """Trials read what any student reads, so a search that saw test clips is refused alike."""
    path = tmp_path / "targets.parquet"
    student = with_teacher(make_task(corpus, epochs=1), path, 0.5)
    tested = read_manifest(corpus[0]).filter(pa.compute.field("split") == "test")
    ids = [*read_soft_targets(path).ids, tested["utterance_id"][0].as_py()]
    spec = SearchSpec(student, SearchConfig(trials=1, epochs=1), 0, "f", "s")
    trial = apply(spec.with_budget(student), {"distillation.weight": 0.3})
    read = TrainingData.open(trial)
    assert not {*read.train.ids, *read.valid.ids} & {*tested["utterance_id"].to_pylist()}
    write_soft_targets(path, ids, np.zeros((len(ids), 7)), "t", np.full(len(ids), -1))
    with told("so they are of another fold or split; remove that file and run the job again"):
        TrainingData.open(trial)


def test_a_transcript_in_two_folds_is_counted(tmp_path: Path) -> None:
    """It is no error, since corpora of read sentences have nothing else: the report warns."""

    def rows_shared(text: str) -> int:
        lines = [
            f"{n}.wav,{text if n in (0, 8) else f't{n}'},{'sad' if n % 2 else 'happy'},p{n // 4}"
            for n in range(16)
        ]
        shutil.rmtree(tmp_path / "own", ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        config = CorpusConfig(kind="table", path=str(write_table(tmp_path / "own", lines)))
        protocol = ProtocolConfig(kind="leave-one-out")
        summary = prepare(
            [config], SplitConfig(), tmp_path / "out", protocol=protocol, unpacked=tmp_path
        )
        return int(summary["leaks"]["transcript_rows"])

    assert rows_shared("the same words") == 2
    assert rows_shared("") == 0


def test_a_test_speaker_in_the_training_part(corpus: Corpus, tmp_path: Path) -> None:
    trained(replace(make_task(corpus, epochs=1), name="audio"), tmp_path / "audio")
    folder = tmp_path / "fold"
    config = EvaluationConfig(latency_clips=0, resamples=100)
    candidates = [Candidate("audio", "student", [tmp_path / "audio"])]

    def score(move: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        table = read_manifest(corpus[0])
        part = table["split"].to_pylist()
        for row in [row for row, name in enumerate(part) if name == "test"][:move]:
            part[row] = "train"
        at = table.column_names.index("split")
        planted = table.set_column(at, "split", pa.array(part))
        write_manifest(planted, folder)
        evaluate([EvaluatedFold(folder, candidates, "p9")], corpus[1], config, folder)

    with told("so its models know who they are tested on; remove that folder and run"):
        score(1)
    score(0)
