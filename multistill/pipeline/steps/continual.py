"""Steps of continual learning: the trainings, one corpus after another, and their matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster.tasks import on_cluster
from multistill.errors import UsageError
from multistill.hardware import Resources
from multistill.pipeline.continual import (
    Training,
    corpora_of,
    courses_of,
    has_own_models,
    training_of,
    trainings_of,
)
from multistill.pipeline.folds import FOLDS, Fold, folds_of, split_unit
from multistill.pipeline.step import Artifacts, Step, StepRun
from multistill.pipeline.steps.training import ModelStep, planned_training, training_task
from multistill.pipeline.steps.transcripts import refuse_without_text
from multistill.tracking.logger import RunLogger
from multistill.training.model_store import VERSION, Index
from multistill.workspace import Artifact, clear, fingerprint, read_json

if TYPE_CHECKING:
    from multistill.evaluation.candidates import Candidate
    from multistill.training.task import TrainingTask

PARTS = ("train", "valid", "test")
FIGURES = ("average", "backward", "forgetting")
"""Over the corpora, as `multistill.evaluation.continual` names them."""
FISHER = "fisher"
FISHER_VERSION = 1
_CONCURRENT_FISHERS = 32
"""Threads, each of which waits for a Ray task; the cluster decides how many of these run."""


class Continual(ModelStep):
    """Every method over every order of the corpora; what two of them share is trained once."""

    name = "continual"
    artifact = "continual"
    sections = frozenset({"continual", "seeds", "tasks"})

    def config(self) -> Any:
        return {
            "continual": self.job.continual.identity(),
            "corpora": list(corpora_of(self.job)),
            "tasks": self.job.tasks.weights(),
            "seed": self.job.seed,
            "seeds": self.job.seeds,
            "models": VERSION,
        }

    def reads(self) -> Sequence[str]:
        return ("manifest", "features")

    def preflight(self, artifacts: Artifacts) -> None:
        """Refuse a part of a split that lacks a corpus, and MESM without transcripts.

        Raises:
            UsageError: names the first.
        """
        from multistill.corpora.manifest import read_manifest

        config = self.job.continual
        if "manifest" in artifacts:
            models = [config.model_of(method) for method in config.methods]
            refuse_without_text(models, artifacts["manifest"])

        for fold in folds_of(artifacts) if "manifest" in artifacts else []:
            manifest = fold.artifacts["manifest"]
            rows = read_manifest(manifest.path, ["corpus", "split"])
            there = set(zip(rows["corpus"].to_pylist(), rows["split"].to_pylist(), strict=True))
            for corpus in corpora_of(self.job):
                for part in PARTS:
                    if (corpus, part) not in there:
                        crossed = fold.number is not None
                        where = f"fold {manifest.summary['name']}" if crossed else "the split"
                        raise UsageError(
                            f"continual: {where} has no clip of `{corpus}` in "
                            f"{part}, and every corpus is learnt, chosen on and tested; raise "
                            f"`split.valid` and `split.test`, use fewer `protocol.folds`, or set "
                            "another `split.seed`"
                        )

    def build(self, run: StepRun) -> Mapping[str, Any]:
        folds, corpora = folds_of(run.artifacts), corpora_of(self.job)
        trainings = trainings_of(self.job)
        index: dict[str, Any] = {}
        for length in range(1, len(corpora) + 1):
            # Those that start from no other model take part in the first round.
            turn = [t for t in trainings if (1 if t.is_first else len(t.learnt)) == length]
            self._measure_fishers(turn, folds, index, run)
            planned = [
                (replace(task, name=fold.model_name(task.name)), inputs)
                for fold in folds
                for training in turn
                for task, inputs in self._tasks(training, fold, index, run)
            ]
            if planned:
                index |= self.model_store.train(planned, run.out, run.logger)["models"]
        members = {training.name: self._members(training.name) for training in trainings}
        summary: dict[str, Any] = {"models": index, "members": members}
        if folds[0].number is not None:
            names = [name for each in members.values() for name in each]
            summary[FOLDS] = [
                {"models": {name: index[fold.model_name(name)] for name in names}} for fold in folds
            ]
        return summary

    def _members(self, name: str) -> list[str]:
        """Names of the models of every seed."""
        seeds = self.job.seeds
        return [name] if seeds == 1 else [f"{name}-seed{offset}" for offset in range(seeds)]

    def _tasks(
        self, training: Training, fold: Fold, index: Index, run: StepRun
    ) -> Iterator[tuple[TrainingTask, dict[str, str]]]:
        """The training of every seed, and the fingerprints of what it reads.

        Args:
            index: of the models trained so far, of all folds.
        """
        config, variant = self.job.continual, training.variant
        corpora = self._corpora(training)
        base = training_task(
            self.job,
            fold.artifacts,
            training.name,
            "teacher",
            config.model_of(variant.method),
            config.train,
            clips=_clips(fold.artifacts, corpora),
            corpora=corpora,
        )
        adapted = config.adapted(variant.method)
        if adapted is not None:
            base = replace(
                base,
                encoders={name: each.adapted(adapted) for name, each in base.encoders.items()},
            )
        inputs = dict(self.inputs(fold.artifacts))
        for offset, name in enumerate(self._members(training.name)):
            seed = base.seed + offset
            # Weights of an encoder that are drawn at random are others for every seed.
            drawn = {key: replace(each, seed=seed) for key, each in base.encoders.items()}
            task = replace(base, name=name, seed=seed, encoders=drawn)
            if training.is_first or has_own_models(variant):
                yield task, inputs
            else:
                yield self._continued(task, training, offset, fold, index, run, inputs)

    def _continued(
        self,
        task: TrainingTask,
        training: Training,
        seed: int,
        fold: Fold,
        index: Index,
        run: StepRun,
        inputs: dict[str, str],
    ) -> tuple[TrainingTask, dict[str, str]]:
        """The training that goes on from the model of the corpora before."""
        config, variant = self.job.continual, training.variant
        before = training_of(variant, training.learnt[:-1], corpora_of(self.job))
        entry = index[fold.model_name(self._members(before.name)[seed])]
        start = str(self.model_store.folder(entry))
        task = replace(task, initial={"": start}, new_classifier=config.head == "per-task")
        if variant.method == "head-only":
            task = replace(task, trains="classifier")
        elif variant.method == "ewc":
            fisher = self._fisher(before, task.seed, seed, fold, index, run)
            inputs = {**inputs, FISHER: fisher.fingerprint}
            task = replace(task, fisher=str(fisher.path), fisher_weight=variant.weight)
        return task, inputs

    def _corpora(self, training: Training) -> dict[str, float]:
        """The share of the training clips of each corpus that a training reads."""
        old, newest = training.learnt[:-1], {training.learnt[-1]: 1.0}
        match training.variant.method:
            case "joint":
                return dict.fromkeys(training.learnt, 1.0)
            case "replay":
                return {**dict.fromkeys(old, self.job.continual.replay_share), **newest}
            case _:
                return newest

    def _measure_fishers(
        self, turn: Sequence[Training], folds: Sequence[Fold], index: Index, run: StepRun
    ) -> None:
        """Compute what the penalties of these trainings read, as many at a time as fit."""
        corpora = corpora_of(self.job)
        starts = {
            training_of(t.variant, t.learnt[:-1], corpora)
            for t in turn
            if t.variant.method == "ewc" and not t.is_first
        }
        wanted = [
            (start, member, fold)
            for fold in folds
            for start in sorted(starts, key=lambda each: each.name)
            for member in range(self.job.seeds)
        ]
        if not wanted:
            return
        with ThreadPoolExecutor(min(len(wanted), _CONCURRENT_FISHERS)) as pool:
            running = [
                pool.submit(self._fisher, start, self.job.seed + member, member, fold, index, run)
                for start, member, fold in wanted
            ]
            for each in running:
                each.result()

    def _fisher(
        self, learnt: Training, seed: int, member: int, fold: Fold, index: Index, run: StepRun
    ) -> Artifact:
        """The Fisher information of all corpora that a model has learnt."""
        from multistill.training.consolidation import write_fisher

        earlier = None
        if len(learnt.learnt) > 1:
            before = training_of(learnt.variant, learnt.learnt[:-1], corpora_of(self.job))
            earlier = self._fisher(before, seed, member, fold, index, run)
        ewc, corpus = self.job.continual.ewc, learnt.learnt[-1]
        entry = index[fold.model_name(self._members(learnt.name)[member])]
        config = {"corpus": corpus, "of": ewc.fisher, "clips": ewc.clips, "seed": seed}
        inputs = {
            **self.inputs(fold.artifacts),
            "model": str(entry["fingerprint"]),
            **({} if earlier is None else {"earlier": earlier.fingerprint}),
        }
        manifest, features = (fold.artifacts[name].path for name in ("manifest", "features"))

        def build(out: Path) -> Mapping[str, Any]:
            run.logger.info(f"Fisher information of `{learnt.name}` on `{corpus}`")
            summary: Mapping[str, Any] = on_cluster(
                write_fisher,
                self.model_store.folder(entry),
                manifest,
                features,
                corpus,
                clear(out),
                ewc.fisher,
                ewc.clips,
                seed,
                None if earlier is None else earlier.path,
            )
            return summary

        key = fingerprint(FISHER, FISHER_VERSION, config, inputs)
        return self.workspace.make(FISHER, key, build, config=config, inputs=inputs)

    def candidates(self, artifact: Artifact) -> list[Candidate]:
        """The models that end up as one for all corpora; `joint` stands in the place of a teacher.

        The matrix has the others.
        """
        index: Index = artifact.summary["models"]
        members = artifact.summary["members"]
        last = {
            course.last: "teacher" if course.variant.method == "joint" else "control"
            for course in courses_of(self.job)
            if course.head == "one"
        }
        return [
            replace(self.over_seeds(name, index, members[name]), role=role)
            for name, role in last.items()
        ]

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        config = self.job.continual
        models = [
            planned_training(
                self.job,
                training.name,
                self.job.seeds,
                config,
                artifacts,
                config.model_of(training.variant.method),
                _clips(folds_of(artifacts)[0].artifacts, self._corpora(training)),
            )
            for training in trainings_of(self.job)
        ]
        return {"models": models}


def _clips(artifacts: Artifacts, corpora: Mapping[str, float]) -> int | None:
    """Training clips of a fold that are read of some corpora; None before there is a manifest."""
    from multistill.corpora.manifest import read_manifest

    manifest = artifacts.get("manifest")
    if manifest is None or "splits" not in manifest.summary:  # `plan` before `prepare`
        return None
    rows = read_manifest(manifest.path, ["corpus", "split"])
    parts = zip(rows["corpus"].to_pylist(), rows["split"].to_pylist(), strict=True)
    count = Counter(corpus for corpus, split in parts if split == "train")
    return round(sum(share * count[name] for name, share in corpora.items()))


class Forgetting(Step):
    """The matrix of every method: each corpus tested after each that was learnt."""

    name = "forgetting"
    artifact = "forgetting"
    version = 2
    sections = frozenset({"continual", "evaluation"})
    uses_ray = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.models = Continual(self.job, self.workspace)

    def config(self) -> Any:
        return {
            "corpora": list(corpora_of(self.job)),
            "confidence": self.job.evaluation.confidence,
            "resamples": self.job.evaluation.resamples,
            "seed": self.job.seed,
        }

    def reads(self) -> Sequence[str]:
        return ("manifest", "features", "continual")

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.evaluation.continual import METRICS, score_courses
        from multistill.evaluation.course_models import FoldModels

        store = self.models.model_store
        metric = self.job.continual.train.metric or self.job.tasks.metric
        folds = []
        for fold in folds_of(run.artifacts):
            self.models.refuse_other_data(fold.artifacts)
            summary = fold.artifacts["continual"].summary
            folders = {
                name: [store.folder(summary["models"][each]) for each in members]
                for name, members in summary["members"].items()
            }
            folds.append(FoldModels(fold.artifacts["manifest"].path, folders))
        result: Mapping[str, Any] = on_cluster(
            score_courses,
            folds,
            run.artifacts["features"].path,
            list(courses_of(self.job)),
            corpora_of(self.job),
            self.job.evaluation,
            clear(run.out),
            self.job.seed,
            split_unit(self.job),
            metric if metric in METRICS else "macro_f1",
        )
        return result

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        """Average and backward transfer of UAR by method and order."""
        from multistill.evaluation.courses import RESULTS

        rows = []
        for course in read_json(artifact.path / RESULTS)["courses"]:
            name = f"{course['method']} {':'.join(course['order'])}"
            scores = {each: course["given"][each]["uar"]["value"] for each in FIGURES}
            known = {each: value for each, value in scores.items() if value is not None}
            logger.metrics({f"{each}_uar_{name}": value for each, value in known.items()})
            figures = ", ".join(f"{each} {value:.3f}" for each, value in known.items())
            rows.append(f"- {name}: {figures}{', chosen on validation' * course['chosen']}")
        return "UAR after all corpora:\n\n" + "\n".join(rows)
