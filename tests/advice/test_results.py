"""Advice about results: what a verdict, a warning or a missing result says to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.advice import says, told
from helpers.evaluation_case import EvaluationCase, make_job
from helpers.training_corpus import make_corpus, make_task, trained, with_teacher

from multistill.config import (
    CLASSES,
    CorpusConfig,
    FeaturesConfig,
    SpeechEncoderConfig,
    SplitConfig,
)
from multistill.corpora.coverage import coverage_gaps
from multistill.corpora.labels import LabelReader
from multistill.corpora.manifest import manifest_schema, read_manifest, write_manifest
from multistill.corpora.split import split_rows
from multistill.encoders.training_data import overlaps
from multistill.evaluation.distorted_clips import list_clips
from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.evaluation.trained import not_trained_on_test, not_trained_on_validation
from multistill.pipeline import jobfile
from multistill.report.build import warnings
from multistill.report.small_test_sets import small_test_set
from multistill.workspace import read_json


def test_a_training_that_hardly_learnt(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", rows=300)
    slow = make_task(corpus, learning_rate=1e-5, epochs=2)
    reason = not_trained_on_validation([trained(slow, tmp_path / "slow")])
    says("raise the rate or the epochs ({}), and see whether the linear probe finds", reason)
    assert "train.learning_rate 1e-05" in str(reason) and "train.epochs 2" in str(reason)
    for name, better in (
        ("rate", replace(slow, train=slow.train.model_copy(update={"learning_rate": 1e-2}))),
        ("epochs", make_task(corpus, learning_rate=1e-3, epochs=12)),
    ):
        assert not_trained_on_validation([trained(better, tmp_path / name)]) is None


def test_a_scheduled_training_that_hardly_learnt(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", rows=300)
    slow = make_task(corpus, learning_rate=1e-5, epochs=2)
    student = with_teacher(slow, tmp_path / "targets.parquet", weight=0.1)
    assert student.distillation is not None
    falls = student.distillation.model_copy(update={"schedule": "fall"})
    slow = replace(student, distillation=falls)
    reason = not_trained_on_validation([trained(slow, tmp_path / "slow")])
    says("class counts of the parts, or raise the rate or the epochs ({})", reason)
    for name, better in (
        ("rate", slow.with_train(learning_rate=1e-2)),
        ("epochs", slow.with_train(learning_rate=1e-3, epochs=12)),
    ):
        assert not_trained_on_validation([trained(better, tmp_path / name)]) is None


def test_a_training_that_learnt_by_heart(tmp_path: Path, evaluation_case: EvaluationCase) -> None:
    manifest, store = make_corpus(tmp_path / "corpus", rows=100)
    right = read_manifest(manifest)
    rows = right.to_pylist()
    random = np.random.default_rng(0)
    for row in rows:
        label = int(random.integers(0, 4))
        row |= {"label": CLASSES[label], "label_soft": np.eye(7, dtype=np.float32)[label].tolist()}
    write_manifest(
        pa.Table.from_pylist(rows, schema=manifest_schema(CLASSES)), Path(manifest).parent
    )
    task = make_task((manifest, store), epochs=20, metric="loss")
    reason = not_trained_on_validation([trained(task, tmp_path / "shuffled")])
    says(
        "look at the labels and the class counts of the parts, and compare the linear probe", reason
    )
    write_manifest(right, Path(manifest).parent)  # the labels were wrong
    right_task = make_task((manifest, store), epochs=12)
    assert not_trained_on_validation([trained(right_task, tmp_path / "right")]) is None
    shown_in_the_report(evaluation_case)


def shown_in_the_report(case: EvaluationCase) -> None:
    """What one is told to look at: class counts of the parts, slices by session, the probe."""
    report, page = case.default_report
    assert {"train", "valid", "test"} <= set(report["corpus"]["splits"])
    assert any(model["slices"] for model in case.metrics["models"])
    assert "session" in page and "probe" in page.lower()


def test_a_training_that_test_does_not_confirm(evaluation_case: EvaluationCase) -> None:
    worse, majority = {"uar": 0.14, "macro_f1": 0.05}, {"uar": 0.143, "macro_f1": 0.06}
    reason = not_trained_on_test(worse, majority)
    says("look at the class counts of the parts and at the slices by session", reason)
    shown_in_the_report(evaluation_case)
    assert not_trained_on_test({"uar": 0.3, "macro_f1": 0.2}, majority) is None


def test_one_training_each(evaluation_case: EvaluationCase, tmp_path: Path) -> None:
    case, config = evaluation_case, make_job().evaluation

    def sentence(*repeats: str) -> str:
        members = {"repeats": [[case.folders[name]] for name in repeats]}
        pair = [
            case.candidate("multimodal", compare_to="multimodal-control", **members),
            case.candidate("multimodal-control", role="control", **members),
        ]
        evaluate([EvaluatedFold(case.manifest, pair)], case.store, config, tmp_path)
        comparison = read_json(tmp_path / "metrics.json")["distillation"][0]
        return f"{comparison['verdict']}: {comparison['sentence']}"

    says("set `seeds: 3` or more for a verdict.", sentence())
    again = sentence("multimodal", "multimodal")
    assert "seeds: 3" not in again and "means of 3 seeds" in again
    job = jobfile.parse("name: x\ncorpora: [{kind: demo}]\nseeds: 3\n", "x.yaml")
    assert job.seeds == 3


def test_models_of_one_name(evaluation_case: EvaluationCase, tmp_path: Path) -> None:
    case, config = evaluation_case, make_job().evaluation
    twice = [case.candidate("audio"), case.candidate("audio")]
    with told("two models to evaluate are called `{}`; rename one"):
        evaluate([EvaluatedFold(case.manifest, twice)], case.store, config, tmp_path)
    renamed = [case.candidate("audio"), replace(case.candidate("audio"), name="audio-2")]
    evaluate([EvaluatedFold(case.manifest, renamed)], case.store, config, tmp_path)


def test_manifests_without_what_is_needed(evaluation_case: EvaluationCase, tmp_path: Path) -> None:
    case, config = evaluation_case, make_job().evaluation
    table = pq.read_table(case.manifest / "manifest.parquet")

    def evaluated(*rows: dict[str, Any]) -> None:
        (folder := tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        pq.write_table(pa.Table.from_pylist(list(rows), table.schema), folder / "manifest.parquet")
        evaluate([EvaluatedFold(folder, [case.candidate("audio")])], case.store, config, folder)

    rows = table.to_pylist()
    no_test = [row | ({"split": "valid"} if row["split"] == "test" else {}) for row in rows]
    with told("so nothing can be scored; raise `split.test` or look into quarantine.parquet"):
        evaluated(*no_test)
    [folder] = tmp_path.iterdir()
    with told("so its robustness cannot be measured; raise `split.test` or look into quarantine"):
        list_clips([folder], case.store, [1], folder)
    no_label = [row | ({"label": None} if row["split"] == "train" else {}) for row in rows]
    with told("no majority baseline; check the labels and `split` in the job file"):
        evaluated(*no_label)
    evaluated(*rows)


def test_classes_that_a_part_lacks() -> None:
    """A session with all clips of a class is moved by another `split.seed` or key."""
    few = {"train": {"happy": 9}, "valid": {"happy": 3}, "test": {"happy": 3, "fear": 2}}
    [gap] = coverage_gaps(few)
    says("and change `split` or the corpora's labels", gap.text)
    sessions = [f"s{number % 6}" for number in range(120)]
    fear = [name == "s0" for name in sessions]
    table = pa.table(
        {
            "utterance_id": [f"u{number}" for number in range(120)],
            "session": sessions,
            "speaker": sessions,
            "text": [""] * 120,
            "audio_digest": [f"u{number}" for number in range(120)],
        }
    )

    def gaps(**split: Any) -> list[Any]:
        parts = split_rows(table, SplitConfig(**split), None).part
        counts = {
            part: {
                "happy": sum(1 for p, f in zip(parts, fear, strict=True) if p == number and not f),
                "fear": sum(1 for p, f in zip(parts, fear, strict=True) if p == number and f),
            }
            for number, part in enumerate(("train", "valid", "test"))
        }
        return coverage_gaps(counts)

    assert gaps(by="session")
    assert not gaps(by="random", allow_leak=True)
    assert LabelReader(corpus={"fear": "sad"})["fear"] == "sad"
    merged = {part: {"happy": sum(counts.values())} for part, counts in few.items()}
    assert coverage_gaps(merged) == []


def test_too_few_clips_of_a_class_or_of_validation(evaluation_case: EvaluationCase) -> None:
    corpus = {"leaks": {"sessions": 0, "speakers": 0}, "synthetic": False}
    enough = {
        "test": {
            "resampled": {
                **evaluation_case.metrics["test"]["resampled"],
                "count": 30,
                "few": False,
            },
            "rare_classes": [],
        },
        "validation": {"clips": 900, "groups": 9, "unit": "session"},
    }
    rare = {"rare_classes": [{"class": "fear", "clips": 2, "groups": 1}]}
    small = {"clips": 30, "groups": 2, "unit": "speaker"}

    def texts(test: dict[str, Any], validation: dict[str, Any]) -> str:
        metrics = dict(evaluation_case.metrics)
        metrics["test"] = {**metrics["test"], **enough["test"], **test}
        metrics["validation"] = {**enough["validation"], **validation}
        return " ".join(w["text"] for w in warnings(corpus, metrics, make_job(), {}))

    said = texts(rare, small)
    says("Raise `split.test`, or map these labels to other classes (`labels` of the corpus).", said)
    says("Raise `split.valid`, or add speakers.", said)
    assert "Raise" not in texts({}, {})
    for key in ("test", "valid"):
        jobfile.parse(f"name: x\ncorpora: [{{kind: demo}}]\nsplit: {{{key}: 0.35}}\n", "x.yaml")
    speakers = pa.table({"utterance_id": [f"u{n}" for n in range(400)]})
    for count, share in ((10, 0.15), (10, 0.3), (30, 0.15)):
        names = pa.array([f"p{n % count}" for n in range(400)])
        empty = pa.array([""] * 400)
        table = speakers.append_column("speaker", names).append_column("session", empty)
        table = table.append_column("text", empty).append_column(
            "audio_digest", speakers["utterance_id"]
        )
        parts = split_rows(table, SplitConfig(by="speaker", valid=share), None).part
        groups = len({names[n].as_py() for n in np.flatnonzero(parts == 1)})
        assert (groups > 2) == (share > 0.2 or count > 10)


def test_small_test_sets() -> None:
    def texts(speakers: int, clips: dict[str, int], crossed: bool = False) -> list[str]:
        described = {"count": speakers, "unit": "speaker", "one_group": False, "few": False}
        rare = [{"class": name, "clips": count} for name, count in clips.items() if count < 3]
        test = {"speakers": speakers, "resampled": described, "rare_classes": rare}
        return [text for _, _, text in small_test_set(test, clips, crossed)]

    [few] = texts(3, {"happy": 40, "sad": 40})
    says("Raise `split.test`, test every speaker (`protocol`), or add speakers.", few)
    assert texts(6, {"happy": 40, "sad": 40}) == []
    [few] = texts(6, {"happy": 40, "sad": 9})
    says("Raise `split.test`, test every clip (`protocol`), or merge", few)
    assert texts(6, {"happy": 49}) == []  # merged
    [rare] = texts(6, {"happy": 40, "sad": 2})
    says("Raise `split.test`, or map these labels", rare)
    # A cross-validation tests every clip, so there is no test part to enlarge.
    crossed = [*texts(3, {"happy": 40, "sad": 9}, True), *texts(6, {"happy": 40, "sad": 2}, True)]
    assert len(crossed) == 3 and not any("split.test" in text for text in crossed)
    says("Add speakers.", crossed[0])
    says("Add clips, or merge classes (`labels.merge`).", crossed[1])
    says("Add clips of them, or map their labels to other classes", crossed[2])


def test_an_encoder_that_knows_the_corpus() -> None:
    corpora = [CorpusConfig(kind="emodb", path="/data/emodb")]

    def sentences(model: str) -> list[str]:
        return overlaps(FeaturesConfig(speech=SpeechEncoderConfig(model=model)), corpora)

    [sentence] = sentences("emotion2vec/emotion2vec_plus_base")
    says("so it may know the clips that this job tests on, and results may be too good", sentence)
    assert sentences("facebook/wav2vec2-base") == []
