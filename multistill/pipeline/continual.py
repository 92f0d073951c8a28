"""Which models continual learning trains, and which of them answers for which corpus.

A model is named by its method and by the corpora that it has learnt, in order: `finetune a:b`
learnt `a` and went on with `b`. What two rows of the tables share is trained once: every method
starts from `alone a`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multistill.config import JobConfig
from multistill.config.continual import OWN_WEIGHTS, Variant
from multistill.evaluation.courses import Answers, Course

Order = tuple[str, ...]


def corpora_of(job: JobConfig) -> Order:
    """Names of the corpora with labels, in the order of the job file."""
    return tuple(corpus.title for corpus in job.corpora if not corpus.unlabelled)


def orders_of(job: JobConfig) -> list[Order]:
    """The orders in which the corpora are learnt: those of the job, or forth and back."""
    given = [tuple(order) for order in job.continual.orders]
    corpora = corpora_of(job)
    return given or [corpora, corpora[::-1]]


@dataclass(frozen=True)
class Training:
    """One model.

    Attributes:
        learnt: the corpora that it has learnt, the newest last.
    """

    variant: Variant
    learnt: Order

    @property
    def name(self) -> str:
        return f"{self.variant.name} {':'.join(self.learnt)}"

    @property
    def is_first(self) -> bool:
        """Whether it starts from no other model."""
        return len(self.learnt) == 1 or self.variant.method == "joint"


def training_of(variant: Variant, learnt: Order, corpora: Order) -> Training:
    """The model of a method after some corpora; equal for equal trainings.

    Args:
        corpora: of the job, whose order is that of `joint`.
    """
    if has_own_models(variant):
        return Training(variant, learnt[-1:])
    if len(learnt) == 1:
        return Training(Variant("alone", "alone"), learnt)
    if variant.method == "joint":
        return Training(variant, tuple(name for name in corpora if name in learnt))
    return Training(variant, learnt)


def has_own_models(variant: Variant) -> bool:
    """Whether every corpus has a model of its own, so that none is forgotten."""
    return variant.method in OWN_WEIGHTS or variant.method == "alone"


def trainings_of(job: JobConfig) -> list[Training]:
    """All models, each once, those that others start from first."""
    found: dict[Training, None] = {}
    corpora = corpora_of(job)
    for length in range(1, len(corpora) + 1):
        for order in orders_of(job):
            for variant in job.continual.variants():
                found[training_of(variant, order[:length], corpora)] = None
    return list(found)


def courses_of(job: JobConfig) -> Iterator[Course]:
    """The rows of the tables, by order and then by method."""
    corpora = corpora_of(job)
    for order in orders_of(job):
        for variant in job.continual.variants():
            names = [
                training_of(variant, order[: length + 1], corpora).name
                for length in range(len(order))
            ]
            head = head_of(job, variant)
            steps: list[Answers] = []
            for step, name in enumerate(names):
                learnt = order[: step + 1]
                if has_own_models(variant):
                    steps.append({c: (n, n) for c, n in zip(learnt, names, strict=False)})
                elif head == "one":
                    steps.append(dict.fromkeys(learnt, (name, name)))
                else:
                    steps.append({c: (name, n) for c, n in zip(learnt, names, strict=False)})
            yield Course(variant, order, head, steps)


def head_of(job: JobConfig, variant: Variant) -> str:
    """How many classifiers a method has, in words."""
    if variant.method == "alone":
        return "a model per corpus"
    if variant.method in OWN_WEIGHTS:
        return "one per corpus, with weights"
    if variant.method == "joint" or job.continual.head == "shared":
        return "one"
    return "one per corpus"
