"""A search from start to end, and joining one: the Optuna study is its only state.

A driver can be killed at any time. The study on disk knows every trial that was handed out;
`search` called again with the same folder continues the orphaned trials from their
checkpoints, runs the missing ones and returns the same kind of result.
"""

from __future__ import annotations

import contextlib
import gc
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from multistill.cluster.nodes import cluster_nodes, dashboard_url
from multistill.config import SearchConfig
from multistill.errors import MultistillError, UsageError
from multistill.search.capacity import (
    capacity_problems,
    concurrency,
    gpus_per_trial,
)
from multistill.search.locks import DriverLease, StudyLock, is_alive, wait_for_other_drivers
from multistill.search.results import (
    STUDY,
    TRIALS,
    log_joined_trials,
    log_table,
    trial_rows,
    write_results,
)
from multistill.search.salvage import salvage
from multistill.search.space import check_space
from multistill.search.spec import SPEC, SearchSpec
from multistill.search.storage import (
    DRIVER,
    JOURNAL,
    RUNS,
    has_values,
    open_storage,
    open_study,
    outcome_of,
)
from multistill.search.trial_folders import unfinished_trials
from multistill.search.warm_start import copy_trials, find_previous
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.training.task import TrainingTask
from multistill.wording import counted

if TYPE_CHECKING:
    import optuna

    from multistill.search.experiment import ExperimentResult
    from multistill.search.trainable import Objective


def search(
    base: TrainingTask,
    config: SearchConfig,
    seed: int,
    out: Path,
    logger: RunLogger | None = None,
    fingerprint: str = "",
    *,
    objective: Objective | None = None,
    others: Path | None = None,
) -> dict[str, Any]:
    """Search the student's settings, or continue an interrupted search.

    Ray must be connected. Writes `trials.parquet` and `study.json` to `out`, where the study
    itself lies.

    Args:
        base: the distilled student whose settings are varied.
        out: folder on storage that all nodes see; holds the state of an unfinished search.
        fingerprint: of the job's search stage; part of the study's name.
        objective: what a trial runs; default: the training loop.
        others: folder of search artifacts, one of which this search may continue with more
            trials; default: the parent of `out`.

    Returns:
        the content of study.json: best, top (settings of the best trials), counts, seconds.

    Raises:
        UsageError: a search space, storage or resource request that cannot work.
        MultistillError: trials fail one after another, or all did.
        KeyboardInterrupt: Ctrl-C; running trials stopped after their epoch.
    """
    spec = SearchSpec(base, config, seed, fingerprint, study="")
    _check(spec)
    logger = logger or NullLogger()
    _salvage(out, logger)
    opened = _open(spec, out, others)
    return _run(opened, out, logger, objective)


def join(
    out: Path,
    logger: RunLogger | None = None,
    config: SearchConfig | None = None,
    *,
    objective: Objective | None = None,
) -> int:
    """Run trials of a search that another driver started, until none is left to start.

    Args:
        config: how many trials run here and the resources of each; default: as in the search
            itself. `workers_per_trial` is always the search's own.

    Returns:
        number of trials that ended here. The driver that started the search writes the
        results and logs these trials.

    Raises:
        UsageError: the search has no trials left to start, or cannot run here.
        MultistillError: trials fail one after another here.
    """
    logger = logger or NullLogger()
    spec = SearchSpec.read(out)
    if config is not None:
        spec = replace(spec, config=_joining_config(config, spec.config))
    _check(spec)
    _refuse_finished(out)
    _salvage(out, logger)
    _time_encoders(spec, out, objective)
    ended = 0
    while True:
        try:
            result = _run_experiment(spec, out, logger, objective, joined=True)
        except UsageError:
            if ended:  # the search finished between two experiments of this driver
                return ended
            raise
        ended += result.trials_ended
        if result.should_abort:
            count, reason = _failures(_open_study(spec, out))
            raise MultistillError(
                f"this driver stopped because trials fail one after another ({count} of the "
                f"search so far), the last one with: {reason}; fix the cause and join again"
            )
        if not result.exhausted:
            return ended


def _salvage(out: Path, logger: RunLogger) -> None:
    with StudyLock(out):
        with StudyLock(out, f"{JOURNAL}.lock"):
            lost = salvage(out)
        if not lost:
            return
        logger.info(lost)
        if (out / SPEC).exists():  # numbers of lost trials are given again, to other settings
            study = _open_study(SearchSpec.read(out), out)
            study.set_user_attr(RUNS, uuid.uuid4().hex[:8])


def _joining_config(config: SearchConfig, search: SearchConfig) -> SearchConfig:
    """The config of a joining driver, with the fields that its trials read from search.json."""
    fixed = ["storage", "workers_per_trial"]
    if search.workers_per_trial > 1:  # a trial then requests its workers' resources itself
        fixed += ["cpus_per_trial", "gpus_per_trial"]
    return config.model_copy(update={name: getattr(search, name) for name in fixed})


def _refuse_finished(out: Path) -> None:
    """A search that has results is not changed: its folder may be renamed at any moment."""
    if (out / STUDY).exists() or not (out / SPEC).exists():
        raise UsageError(
            f"the search in {out} has no trials left to start, so it cannot be joined; "
            "`multistill search extend` adds trials once it is finished"
        )


def _check(spec: SearchSpec) -> None:
    """Refuse what could never run, before anything is written."""
    config = spec.config
    problems = [f"search.space: {text}" for text in check_space(config.space)]
    if spec.base.distillation is None and any(
        key.startswith("distillation.") for key in config.space
    ):
        problems.append("search.space: `distillation` settings need a student with a teacher")
    if config.sampler == "grid" and any(
        parameter.choices is None or parameter.when for parameter in config.space.values()
    ):
        problems.append("search.sampler: a grid needs plain `choices` for every searched name")
    nodes = cluster_nodes()
    problems += capacity_problems(config, nodes)
    nested = config.workers_per_trial > 1
    if nested and config.second == "latency" and gpus_per_trial(config, nodes):
        problems.append(
            "search.second: latency is timed in the trial's own process, which holds no GPU where "
            "`workers_per_trial` is above 1; use `workers_per_trial: 1` or `second: parameters`"
        )
    if nested and not dashboard_url():
        problems.append(
            "search.workers_per_trial: Ray Train inside Ray Tune frees the workers of stopped "
            "trials through Ray's dashboard, which this Ray runs without; start it with "
            "`ray start --include-dashboard=true`"
        )
    if problems:
        raise UsageError("; ".join(problems))


def _open(spec: SearchSpec, out: Path, others: Path | None = None) -> SearchSpec:
    """Create the study of the search, or find the one in `out`; returns `spec` with its name.

    The specification, which says where the study is, is written once the study exists there.
    """
    with StudyLock(out):
        existing = SearchSpec.read(out) if (out / SPEC).exists() else None
        if existing is not None and not _is_elsewhere(existing, spec, out):
            _refuse_other_search(existing, spec, out)
            opened = replace(spec, study=existing.study)
        else:
            previous = find_previous(others or out.parent, spec)
            opened = _create(spec, out)
            while previous is not None and not copy_trials(previous, opened, out):
                opened = _create(spec, out)
        opened.write(out)
    return opened


def _create(spec: SearchSpec, out: Path) -> SearchSpec:
    """Create an empty study; returns `spec` with its name."""
    opened = replace(spec, study=f"multistill-{spec.fingerprint}-{uuid.uuid4().hex[:8]}")
    _open_study(opened, out)
    return opened


def _is_elsewhere(existing: SearchSpec, spec: SearchSpec, out: Path) -> bool:
    """Whether the search starts again at another `search.storage`: nothing is at the old one.

    Raises:
        UsageError: the old one holds trials, or cannot be looked at.
    """
    if existing.config.storage == spec.config.storage:
        return False
    old = existing.config.storage or "the workspace"
    again = f"or remove {out} to start the search again"
    try:
        study = _open_study(existing, out)
    except UsageError as error:
        raise UsageError(
            f"the study of {out} is stored in {old}, which cannot be looked at; set "
            f"`search.storage` back and make it reachable to continue, {again} ({error})"
        ) from error
    if study.get_trials(deepcopy=False):
        raise UsageError(
            f"the study of {out} is stored in {old}; set `search.storage` back to continue it, "
            f"{again}"
        )
    return True


def _refuse_other_search(existing: SearchSpec, spec: SearchSpec, out: Path) -> None:
    if existing.config.identity() != spec.config.identity() or (
        existing.base.identity() != spec.base.identity()
    ):
        raise UsageError(
            f"{out} holds a search with other settings; use another folder or remove it"
        )
    workers = existing.config.workers_per_trial
    if workers != spec.config.workers_per_trial and unfinished_trials(
        out, _open_study(existing, out)
    ):
        raise UsageError(
            f"{out} holds interrupted trials of {workers} workers each; set "
            f"`search.workers_per_trial` back to {workers} to finish them"
        )


def _run(
    spec: SearchSpec, out: Path, logger: RunLogger, objective: Objective | None
) -> dict[str, Any]:
    """Run experiments until the study has its trials; write the results."""
    (out / STUDY).unlink(missing_ok=True)  # of an earlier call; drivers may join until the next
    _time_encoders(spec, out, objective)
    first = result = _run_experiment(spec, out, logger, objective)
    while not result.should_abort and (
        result.exhausted or _wait_for_other_trials(spec, out, logger)
    ):
        result = _run_experiment(spec, out, logger, objective)
    study = _open_study(spec, out)
    with wait_for_other_drivers(out):
        log_joined_trials(study, logger, spec.config.metric)
        summary = write_results(study, spec, out, first.concurrency)
    if result.should_abort or not has_values(study):
        count, reason = _failures(study)
        raise MultistillError(
            f"the search stopped because trials fail one after another ({count} of "
            f"{summary['trials']}), the last one with: {reason}; {out / TRIALS} has all reasons, "
            "and the same command continues once the cause is fixed"
        )
    unfinished_trials(out, study)  # removes what a killed driver left behind
    for name in ("drivers", "trials"):
        with contextlib.suppress(OSError):  # not empty: another driver is about to exit
            (out / name).rmdir()
    _log_summary(logger, summary, out)
    log_table(trial_rows(study), logger)
    return summary


def _run_experiment(
    spec: SearchSpec,
    out: Path,
    logger: RunLogger,
    objective: Objective | None,
    *,
    joined: bool = False,
) -> ExperimentResult:
    """Run one experiment under a new lease: trials that it leaves running are orphans."""
    from multistill.search.experiment import run_experiment

    nodes = cluster_nodes()
    with contextlib.ExitStack() as stack:
        with StudyLock(out):
            if joined:
                _refuse_finished(out)
            lease = stack.enter_context(DriverLease(out, joined=joined))
        result = run_experiment(
            spec,
            out,
            logger,
            objective,
            driver=lease.name,
            concurrency=concurrency(spec.config, nodes),
            gpus=gpus_per_trial(spec.config, nodes),
        )
    gc.collect()  # Tune's objects refer to each other in cycles: free them before the next one
    return result


def _wait_for_other_trials(spec: SearchSpec, out: Path, logger: RunLogger) -> bool:
    """Wait for the trials of other drivers; True if one of those drivers died meanwhile."""
    from optuna.trial import TrialState

    study = _open_study(spec, out)
    logged = False
    while True:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not running:
            return False
        with StudyLock(out):
            if any(not is_alive(out, trial.user_attrs.get(DRIVER, "")) for trial in running):
                return True
        if not logged:
            logger.info(
                f"another driver still runs {counted(len(running), 'trial')} of this search; "
                "waiting"
            )
            logged = True
        time.sleep(1.0)


def _open_study(spec: SearchSpec, out: Path) -> optuna.Study:
    return open_study(open_storage(out, spec.config.storage), spec.study, spec.directions)


def _failures(study: optuna.Study) -> tuple[int, str]:
    """How many trials failed, and why the last one did."""
    failed = [trial for trial in study.get_trials() if trial.state.name == "FAIL"]
    if not failed:
        return 0, "no trial ended"
    return len(failed), str(outcome_of(failed[-1]).get("reason", ""))


def _time_encoders(spec: SearchSpec, out: Path, objective: Objective | None) -> None:
    """Time the encoders once for all trials and before any of them, which would disturb it.

    A driver that joins meanwhile waits here.
    """
    if spec.config.second != "latency" or objective is not None:
        return
    from multistill.search.cost import ENCODERS, time_encoders

    with StudyLock(out, f"{ENCODERS}.lock"):
        if (out / ENCODERS).exists():
            return
        task = ray.remote(time_encoders).options(
            num_cpus=spec.config.cpus_per_trial,
            num_gpus=gpus_per_trial(spec.config, cluster_nodes()),
        )
        try:
            ray.get(task.remote(spec.base, out))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MultistillError):
                raise error.cause from None
            raise


def _log_summary(logger: RunLogger, summary: dict[str, Any], out: Path) -> None:
    counts, best = summary["counts"], summary["best"]
    logger.metrics(
        {
            "best_value": float(best["value"]),
            **{f"trials_{state}": float(count) for state, count in counts.items()},
        }
    )
    logger.params({f"best {key}": value for key, value in best["params"].items()})
    logger.tags({"study": summary["study"], "best_trial": str(best["trial"])})
    logger.artifact(out / TRIALS, "search")
    settings = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in best["params"].items()
    )
    logger.info(
        f"{counted(summary['trials'], 'trial')} ({counts['stopped']} stopped early, "
        f"{counts['failed']} failed), best {summary['metric']} {best['value']:.4f}: {settings}"
    )
