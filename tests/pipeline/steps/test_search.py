"""The step that searches, under cross-validation: which fold each search and training reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from multistill.pipeline import jobfile, searches
from multistill.pipeline.folds import FOLDS, parts_of
from multistill.pipeline.plan import render
from multistill.pipeline.stage_status import StageStatus
from multistill.pipeline.step import StepRun
from multistill.pipeline.steps.search import Search
from multistill.search import finalists, study
from multistill.search.spec import SPEC
from multistill.tracking.logger import NullLogger
from multistill.training.model_store import ModelStore
from multistill.training.task import TrainingTask
from multistill.workspace import Artifact, Workspace, fold_folder

K = 3
READS = ("manifest", "features", "statistics", "soft_targets")
JOB = f"""
name: small
corpora: [{{kind: demo}}]
protocol: {{kind: k-fold, folds: {K}}}
search: {{trials: 4, retrain: 2, seeds: 2, nested: NESTED}}
"""
RATE = "train.learning_rate"


class Recorded:
    """Stands in for searches and trainings: what each was given."""

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        self.searches: list[tuple[TrainingTask, Path]] = []
        self.trainings: dict[str, TrainingTask] = {}

    def search(
        self, base: TrainingTask, config: Any, seed: int, out: Path, *_: object, **__: object
    ) -> dict[str, Any]:
        assert out.is_dir()
        self.searches.append((base, out))
        number = len(self.searches)
        top = [{RATE: number * 1e-4}, {RATE: number * 1e-3}]
        return {"top": top, "trials": 4, "best": {"params": top[0]}}

    def train(self, planned: Sequence[tuple[TrainingTask, Any]], *_: object) -> dict[str, Any]:
        for task, inputs in planned:
            self.trainings[task.name] = task
            fold = int(inputs["manifest"].rpartition("-")[2]) - 1
            assert Path(task.manifest) == fold_folder(self.manifest, fold)
        return {
            "models": {
                task.name: {"fingerprint": task.name, "role": task.role, "record_id": None}
                for task, _ in planned
            }
        }


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded(tmp_path / "manifest-print")
    monkeypatch.setattr(study, "search", recorded.search)
    monkeypatch.setattr(ModelStore, "train", recorded.train)

    def best_epoch(folder: Path) -> dict[str, float]:  # the second finalist wins
        return {"valid_macro_f1": 0.9 if "search-2" in folder.name else 0.5}

    monkeypatch.setattr(finalists, "best_epoch", best_epoch)
    return recorded


def artifacts_of(folder: Path) -> dict[str, Artifact]:
    fold = {"splits": {"train": 40}, "seeds": ["print"]}
    meta = {"summary": {FOLDS: [fold] * K}}
    found = {
        name: Artifact(name, f"{name}-print", folder / f"{name}-print", meta) for name in READS
    }
    return found | {"features": Artifact("features", "features-print", folder, {"summary": {}})}


def step_of(folder: Path, nested: bool) -> Search:
    return Search(
        jobfile.parse(JOB.replace("NESTED", str(nested).lower()), "job.yaml"), Workspace(folder)
    )


def built(step: Search, folder: Path) -> Mapping[str, Any]:
    return step.build(StepRun(artifacts_of(folder), folder / "out", NullLogger(), "f"))


def rates(recorded: Recorded, suffix: str) -> dict[str, float]:
    return {
        name: task.train.learning_rate
        for name, task in recorded.trainings.items()
        if suffix in name
    }


def reads_one_fold_only(recorded: Recorded) -> bool:
    """Whether every model of fold N read manifest, statistics and soft targets of fold N."""
    for name, task in recorded.trainings.items():
        place = fold_folder(Path(), int(name.rpartition("-cv")[2]) - 1).as_posix()
        inputs = [task.manifest, task.statistics, task.soft_targets]
        if not all(place in path for path in inputs if path is not None):
            return False
    return True


def test_one_search_on_the_first_fold_and_its_winner_in_all(
    tmp_path: Path, recorded: Recorded
) -> None:
    step = step_of(tmp_path, nested=False)
    summary = built(step, tmp_path)
    [(base, out)] = recorded.searches
    assert out == fold_folder(tmp_path / "out", 0)
    assert base.manifest == str(fold_folder(tmp_path / "manifest-print", 0))
    assert reads_one_fold_only(recorded)
    # The loser is trained where it lost only, winner and control in every fold.
    assert len(rates(recorded, "search-1")) == 2
    for name in ("search-2", "search-control"):
        found = rates(recorded, name)
        assert len(found) == 2 * K and set(found.values()) == {1e-3}
    check_candidates(step, summary, recorded)


def test_a_nested_search_reads_its_own_fold_only(tmp_path: Path, recorded: Recorded) -> None:
    step = step_of(tmp_path, nested=True)
    summary = built(step, tmp_path)
    assert [out for _, out in recorded.searches] == [
        fold_folder(tmp_path / "out", number) for number in range(K)
    ]
    for number, (base, _) in enumerate(recorded.searches):
        assert base.manifest == str(fold_folder(tmp_path / "manifest-print", number))
    assert reads_one_fold_only(recorded)
    for number in range(K):
        found = rates(recorded, f"cv{number + 1}")
        own = {(number + 1) * 1e-4, (number + 1) * 1e-3}
        assert len(found) == 6 and set(found.values()) == own
    check_candidates(step, summary, recorded)


def check_candidates(step: Search, summary: Mapping[str, Any], recorded: Recorded) -> None:
    """Every fold offers winner and control under the same names, with its own models."""
    artifact = Artifact("search", "f", Path("out"), {"summary": summary})
    assert set(summary["models"]) == set(recorded.trainings)
    for number, part in enumerate(parts_of(artifact)):
        control, winner = step.candidates(part)
        assert (control.name, winner.name) == ("multimodal-search-control", "multimodal-search")
        assert winner.compare_to == control.name
        for candidate, kind in ((control, "search-control"), (winner, "search-2")):
            for [folder] in (candidate.folders, *candidate.repeats):
                assert f"{kind}-seed" in str(folder) and str(folder).endswith(f"-cv{number + 1}")


@pytest.mark.parametrize(
    ("nested", "trainings", "shown"),
    [
        (False, [4, (1 + K) * 2, K * 2], "4 trials on the first fold over"),
        (True, [K * 4, (K + K) * 2, K * 2], f"4 trials in each of {K} folds over"),
    ],
)
def test_plan_counts_the_trainings(
    tmp_path: Path,
    recorded: Recorded,
    capsys: pytest.CaptureFixture[str],
    nested: bool,
    trainings: list[int],
    shown: str,
) -> None:
    step = step_of(tmp_path, nested)
    planned = step.plan({"CPU": 4.0, "GPU": 0.0, "cores": 4.0}, artifacts_of(tmp_path))
    assert [row["trainings"] for row in planned["models"]] == trainings
    if not nested:
        built(step, tmp_path)
        assert len(recorded.trainings) == sum(trainings[1:])
    models = [{"stage": "search", "state": "to run", **row} for row in planned["models"]]
    head: dict[str, Any] = {
        "job": "x",
        "recipe": "y",
        "workspace": "w",
        "tracking": "t",
        "ray": "r",
        "unlabelled": {},
        "forecast": None,
        "forecast_and_truth": None,
    }
    head["protocol"] = step.job.protocol.model_dump(mode="json")
    resources = {"CPU": 4.0, "GPU": 0.0}
    render(
        {**head, "resources": resources, "stages": [], "trainings": 1, **planned, "models": models}
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert shown in printed and f"tested {K} folds by speaker" in printed


def test_joining_reaches_the_search_of_the_fold_that_is_searched_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    from multistill import cluster

    folder = Workspace(tmp_path).partial("search", "f")
    for number in (0, 1):
        fold_folder(folder, number).mkdir(parents=True)
        (fold_folder(folder, number) / SPEC).write_text("{}")
    joined: list[Path] = []

    def join(out: Path, *_: object) -> int:
        joined.append(out)
        return 3

    status = StageStatus("search", "missing", "f", None)
    monkeypatch.setattr(searches, "_search_of", lambda job: status)
    monkeypatch.setattr(cluster, "start", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(study, "join", join)
    job = jobfile.parse(JOB.replace("NESTED", "true"), "job.yaml", [f"workspace={tmp_path}"])
    assert searches.join(job) == 3
    assert joined == [fold_folder(folder, 1)]
