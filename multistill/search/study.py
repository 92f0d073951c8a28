"""A search from its start to its table of trials: Ray Tune runs it, the Optuna study is it.

Kill anything at any time: the study on disk knows every trial that was handed out, and
`search` called again with the same folder finishes the orphans from their checkpoints,
asks for the trials that are missing, and ends as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from multistill.cluster.nodes import cluster_nodes, dashboard_url
from multistill.config import SearchConfig
from multistill.errors import MultistillError, UsageError
from multistill.search.capacity import (
    capacity_problems,
    concurrency,
    cores_fit,
    gpus_per_trial,
)
from multistill.search.request import FILE, Request
from multistill.search.results import STUDY, TRIALS, record_joined, write_results
from multistill.search.space import check_space
from multistill.search.storage import (
    DriverLease,
    StudyLock,
    open_storage,
    open_study,
    unfinished_trials,
    wait_for_other_drivers,
)
from multistill.search.warm_start import copy_trials, find_previous
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.training.task import TrainingTask

if TYPE_CHECKING:
    import optuna

    from multistill.search.trial import Objective


def search(
    base: TrainingTask,
    config: SearchConfig,
    seed: int,
    out: Path,
    logger: RunLogger | None = None,
    fingerprint: str = "",
    *,
    objective: Objective | None = None,
) -> dict[str, Any]:
    """Search the student's settings, or go on with a search that was cut short.

    Ray must be connected. Writes `trials.parquet` and `study.json` into `out`, beside the
    study itself.

    Args:
        base: the distilled student whose settings are varied.
        out: folder on storage that all nodes see; holds the state of an unfinished search.
        fingerprint: of the job's search stage; part of the study's name.
        objective: what a trial runs, as `module:function`; see `Request.objective`.
    Returns:
        What study.json holds: best, top (settings of the best trials), counts, seconds.
    Raises:
        UsageError: a space, a storage or a resource request that cannot work.
        MultistillError: trials fail one after another, or all did.
        KeyboardInterrupt: Ctrl-C; trials in hand stopped after their epoch.
    """
    logger = logger or NullLogger()
    request = Request(base, config, seed, fingerprint, "")
    _preflight(request)
    return _finish(_opened(request, out), out, logger, objective)


def join(
    out: Path,
    logger: RunLogger | None = None,
    config: SearchConfig | None = None,
    *,
    objective: Objective | None = None,
) -> int:
    """Run trials of a search that another driver started, until none is left to start.

    Args:
        config: says how many trials run here and what each may take; default: as the search
            itself. Trials are of as many workers as the search's own.
    Returns:
        How many trials ended here. The driver that started the search writes its results
        and records these trials with its own.
    Raises:
        UsageError: the search has ended its trials, or cannot run here.
        MultistillError: trials fail one after another here.
    """
    logger = logger or NullLogger()
    request = Request.read(out)
    if config is not None:
        request = replace(request, config=_joining(config, request.config))
    _preflight(request)
    _refuse_ended(out)
    _time_encoders(request, out, objective)
    ended = 0
    while True:
        try:
            done = _round(request, out, logger, objective, joined=True)
        except UsageError:
            if ended:  # it was over between two rounds of this driver
                return ended
            raise
        ended += done.ended
        if done.should_abort:
            count, reason = _failures(_study(request, out))
            raise MultistillError(
                f"this driver stopped because trials fail one after another ({count} of the "
                f"search so far), the last one with: {reason}; mend the cause and join again"
            )
        if not done.full:
            return ended


def _joining(config: SearchConfig, search: SearchConfig) -> SearchConfig:
    """The joiner's settings, but for what the trials themselves read from the search's file."""
    fixed = ["storage", "workers_per_trial"]
    if search.workers_per_trial > 1:  # what a worker takes is then asked for by the trial
        fixed += ["cpus_per_trial", "gpus_per_trial"]
    return config.model_copy(update={name: getattr(search, name) for name in fixed})


def _refuse_ended(out: Path) -> None:
    """A search that has its results is left alone: its folder may move at any moment."""
    if (out / STUDY).exists() or not (out / FILE).exists():
        raise UsageError(
            f"the search in {out} has ended its trials, so there is nothing to join; more of them "
            "are added by `multistill search extend` once it is done"
        )


def _preflight(request: Request) -> None:
    """Refuse, before anything is written, what could never run."""
    config = request.config
    problems = [f"search.space: {text}" for text in check_space(config.space)]
    teacher = request.base.distillation is not None
    if not teacher and any(key.startswith("distillation.") for key in config.space):
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
            "trials through Ray's dashboard, which this Ray runs without; start it with one"
        )
    if problems:
        raise UsageError("; ".join(problems))


def _opened(request: Request, out: Path) -> Request:
    """The request as it stands in `out`, written there unless it is."""
    with StudyLock(out):
        if (out / FILE).exists():
            known = Request.read(out)
            if known.config.identity() != request.config.identity() or (
                known.base.identity() != request.base.identity()
            ):
                raise UsageError(
                    f"{out} holds a search with other settings; use another folder or remove it"
                )
            if known.config.storage != request.config.storage:
                raise UsageError(
                    f"the study of {out} lies in {known.config.storage or 'the workspace'}; "
                    "set `search.storage` back to go on with it"
                )
            workers = known.config.workers_per_trial
            if workers != request.config.workers_per_trial and unfinished_trials(
                out, _study(known, out)
            ):
                raise UsageError(
                    f"{out} holds trials that were cut off, of {workers} workers each; set "
                    f"`search.workers_per_trial` back to {workers} to finish them"
                )
            opened = replace(request, study=known.study)
        else:
            study = f"multistill-{request.fingerprint}-{uuid.uuid4().hex[:8]}"
            opened = replace(request, study=study)
            if (found := find_previous(out.parent, request)) is not None:
                with contextlib.suppress(UsageError):  # its database is gone: start anew
                    copy_trials(found, opened, out)
        opened.write(out)
    return opened


@dataclass(frozen=True)
class Round:
    """What one Tune experiment of this driver came to."""

    ended: int
    concurrency: int
    should_abort: bool
    full: bool


def _finish(
    request: Request, out: Path, logger: RunLogger, objective: Objective | None
) -> dict[str, Any]:
    from multistill.search.searcher import succeeded

    (out / STUDY).unlink(missing_ok=True)  # of an earlier end; others may join until the next
    _time_encoders(request, out, objective)
    rounds = [_round(request, out, logger, objective)]
    while not rounds[-1].should_abort and (
        rounds[-1].full or _others_running(request, out, logger)
    ):
        rounds.append(_round(request, out, logger, objective))
    study = _study(request, out)
    with wait_for_other_drivers(out):
        record_joined(study, logger)
        summary = _write(study, request, out, rounds[0].concurrency)
    if rounds[-1].should_abort or not succeeded(study):
        count, reason = _failures(study)
        raise MultistillError(
            f"the search stopped because trials fail one after another ({count} of "
            f"{summary['trials']}), the last one with: {reason}; {out / TRIALS} has all reasons, "
            "and the same command goes on once the cause is mended"
        )
    unfinished_trials(out, study)  # what a killed driver could not remove
    for name in ("drivers", "trials", "tune"):
        with contextlib.suppress(OSError):  # not empty: another driver is about to end
            (out / name).rmdir()
    _tell(logger, summary, out)
    return summary


def _study(request: Request, out: Path) -> optuna.Study:
    return open_study(open_storage(out, request.config.storage), request.study, request.directions)


def _failures(study: optuna.Study) -> tuple[int, str]:
    """How many trials failed, and why the last one did."""
    from multistill.search.searcher import reason_of

    failed = [trial for trial in study.get_trials() if trial.state.name == "FAIL"]
    return len(failed), reason_of(failed[-1]) if failed else "no trial ended"


def _write(study: optuna.Study, request: Request, out: Path, at_once: int) -> dict[str, Any]:
    """The results, with what all rounds cost, those of earlier processes too.

    A round that was killed is not among them.
    """
    from multistill.search.experiment import ROUND_OF

    rounds = [value for name, value in study.user_attrs.items() if name.startswith(ROUND_OF)]
    waits = [seconds for done in rounds for seconds in done["waits"]]
    held = sum(done["seconds"] * done["slots"] for done in rounds)
    training = sum(done["training"] for done in rounds)
    return write_results(
        study,
        request,
        out,
        sum(done["seconds"] for done in rounds),
        concurrency=at_once,
        start_seconds=round(statistics.median(waits), 3) if waits else None,
        training_share=round(training / held, 4),
    )


def _round(
    request: Request,
    out: Path,
    logger: RunLogger,
    objective: Objective | None,
    *,
    joined: bool = False,
) -> Round:
    """Run orphans and missing trials through Tune until no more can be handed out."""
    from multistill.search.experiment import run_trials

    nodes = cluster_nodes()
    limit = cores_fit(request.config, concurrency(request.config, nodes), nodes)
    gpus = gpus_per_trial(request.config, nodes)
    with contextlib.ExitStack() as stack:
        with StudyLock(out):
            if joined:
                _refuse_ended(out)
            # Its own: what a round leaves running is an orphan.
            lease = stack.enter_context(DriverLease(out, joined=joined))
        recorder = run_trials(
            request, out, logger, objective, driver=lease.name, limit=limit, gpus=gpus
        )
    done = Round(recorder.ended, limit, recorder.should_abort, recorder.full)
    del recorder
    gc.collect()  # what Tune kept names itself in circles; the next round shall have its memory
    return done


def _others_running(request: Request, out: Path, logger: RunLogger) -> bool:
    """Wait for the trials of other drivers; true if one of those drivers died meanwhile."""
    from optuna.trial import TrialState

    from multistill.search.searcher import DRIVER
    from multistill.search.storage import alive

    study = _study(request, out)
    told = False
    while True:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not running:
            return False
        with StudyLock(out):
            if any(not alive(out, trial.user_attrs.get(DRIVER, "")) for trial in running):
                return True
        if not told:
            logger.info(f"another driver still runs {len(running)} trials of this search; waiting")
            told = True
        time.sleep(1.0)


def _time_encoders(request: Request, out: Path, objective: Objective | None) -> None:
    """Once for all trials and before any of them, so that none slows the clock of another.

    A driver that joins meanwhile waits here.
    """
    if request.config.second != "latency" or objective is not None:
        return
    from multistill.search.cost import ENCODERS, time_encoders

    with StudyLock(out, f"{ENCODERS}.lock"):
        if (out / ENCODERS).exists():
            return
        config, nodes = request.config, cluster_nodes()
        task = ray.remote(time_encoders).options(
            num_cpus=config.cpus_per_trial, num_gpus=gpus_per_trial(config, nodes)
        )
        try:
            ray.get(task.remote(request.base, out))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MultistillError):
                raise error.cause from None
            raise


def _tell(logger: RunLogger, summary: dict[str, Any], out: Path) -> None:
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
    chosen = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in best["params"].items()
    )
    logger.info(
        f"{summary['trials']} trials ({counts['stopped']} stopped early, {counts['failed']} "
        f"failed), best {summary['metric']} {best['value']:.4f}: {chosen}"
    )
