"""Continual learning over corpora: one model learns them in turn, and is tested on all of them."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.config.continual import OWN_WEIGHTS
from multistill.pipeline.continual import corpora_of
from multistill.pipeline.recipes import Recipe
from multistill.pipeline.recipes.augmentation import check_augmentation
from multistill.pipeline.recipes.end_to_end import check_end_to_end
from multistill.pipeline.recipes.fronts import check_fronts
from multistill.pipeline.recipes.models import check_frozen, check_presets
from multistill.pipeline.recipes.packs import pack_steps, packs_left_out
from multistill.pipeline.recipes.scores import check_scores
from multistill.pipeline.recipes.stored_states import check_stored_states
from multistill.pipeline.recipes.trained_encoders import check_trained_encoders
from multistill.pipeline.recipes.unlabelled import refuse_unlabelled
from multistill.pipeline.step import Step
from multistill.pipeline.steps.continual import Continual, Forgetting
from multistill.pipeline.steps.data import Features, Prepare
from multistill.pipeline.steps.evaluation import Evaluate
from multistill.pipeline.steps.report import Report
from multistill.workspace import Workspace


def steps(job: JobConfig, workspace: Workspace) -> list[Step]:
    continual = Continual(job, workspace)
    return [
        Prepare(job, workspace),
        Features(job, workspace),
        continual,
        Forgetting(job, workspace),
        *pack_steps(job, workspace),
        Evaluate(job, workspace, [continual]),
        Report(job, workspace),
    ]


def check(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Problems that the sections cannot see."""
    yield from check_presets(job)
    yield from check_frozen(job)
    yield from _corpora(job)
    yield from _methods(job)
    yield from _scores(job)
    yield from check_scores(job)
    yield from check_stored_states(job)
    yield from check_fronts(job)
    yield from check_augmentation(job)
    yield from check_end_to_end(job)
    yield from check_trained_encoders(job)
    yield from refuse_unlabelled(job)
    if job.features.augmentation.copies:
        yield (
            ("features", "augmentation"),
            "features.augmentation: copies are of the training clips of all corpora, and this "
            "recipe reads them one after another; remove the section",
        )


def _corpora(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """A single corpus, and orders of other corpora than those of the job."""
    corpora = corpora_of(job)
    if len(corpora) < 2:
        yield (
            ("corpora",),
            "continual: one corpus is learnt after another, and the job has one with labels; add "
            "a second one to `corpora`",
        )
        return
    given = job.continual.orders
    for number, order in enumerate(given):
        location: Location = ("continual", "orders", number)
        for name in order:
            if name not in corpora:
                near = get_close_matches(name, corpora, n=1, cutoff=0.4)
                hint = f"did you mean `{near[0]}`?" if near else f"there is {', '.join(corpora)}"
                yield (
                    location,
                    f"continual.orders: no corpus with labels is called `{name}`; {hint}",
                )
                return
        if sorted(order) != sorted(corpora):
            yield (
                location,
                f"continual.orders: {', '.join(order)} is not every corpus of the job once; name "
                f"each of {', '.join(corpora)}",
            )
        elif order in given[:number]:
            yield (
                location,
                f"continual.orders lists {', '.join(order)} twice; remove one",
            )


def _methods(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Weights inside encoders whose states were computed once."""
    inside = [name for name in job.continual.methods if name in OWN_WEIGHTS]
    if inside and not job.features.trained:
        yield (
            ("continual", "methods"),
            f"continual.methods: `{inside[0]}` trains small weights inside an encoder, and "
            "features.speech.train and features.text.train are `none`, so its states are computed "
            f"once; set `train: full` of one of them, or remove `{inside[0]}`",
        )
    layers = [name for name in job.features.trained if getattr(job.features, name).train.layers]
    if "adapter-untrained" in inside and layers:
        yield (
            ("continual", "methods"),
            "continual.methods: `adapter-untrained` draws all layers anew, and with "
            f"features.{layers[0]}.train the store keeps states of the checkpoint below the top "
            "ones; set `train: full`, or remove `adapter-untrained`",
        )
    loss = job.continual.train.loss
    if "ewc" in job.continual.methods and loss in ("mse", "one-vs-rest"):
        yield (
            ("continual", "train", "loss"),
            f"continual: `train.loss: {loss}` trains a model without a distribution over the "
            "classes, and the Fisher information of `ewc` is of the softmax of logits; choose "
            "another loss, or remove `ewc`",
        )


def _scores(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Tasks, metrics and protocols of which there is no matrix over corpora."""
    if job.tasks.classes is None or job.tasks.dimensions:
        yield (
            ("tasks",),
            "tasks: what is learnt and forgotten is measured on classes; set `tasks: [classes]`, "
            "or another recipe",
        )
    if job.continual.train.metric == "ccc":
        yield (
            ("continual", "train", "metric"),
            "continual: `train.metric: ccc` is of dimensions, and this recipe trains classes; "
            "choose another metric",
        )
    protocol = job.protocol
    if protocol.kind == "cross-corpus" or (protocol.crosses and protocol.by == "corpus"):
        yield (
            ("protocol",),
            "protocol: the recipe `continual` tests on every corpus after each, and needs test "
            "clips of all of them in every fold; set `by: session`, or `holdout`",
        )
    elif protocol.repeats > 1:
        yield (
            ("protocol", "repeats"),
            "protocol.repeats: the matrix of the recipe `continual` tests every clip once; use "
            "`repeats: 1`, and `seeds` for repeated trainings",
        )


RECIPE = Recipe(
    name="continual",
    summary="one model learns corpora one after another; what each method keeps of the first",
    steps=steps,
    check=check,
    left_out=packs_left_out,
)
