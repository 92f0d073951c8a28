"""What corpora without labels need of a job: students that the teacher teaches on them."""

from __future__ import annotations

from collections.abc import Iterator

from multistill.config import JobConfig
from multistill.config.base import Location
from multistill.config.models import STATE_WEIGHTS

_WEIGHTS = ("weight", *STATE_WEIGHTS)


def check_unlabelled(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Corpora without labels in a job whose students learn nothing from them."""
    index = next((i for i, corpus in enumerate(job.corpora) if corpus.unlabelled), None)
    if index is None:
        return
    searched = job.search.space if job.search.enabled else {}
    weights = [getattr(job.distillation, name) for name in _WEIGHTS]
    if not any(weights) and not any(f"distillation.{name}" in searched for name in _WEIGHTS):
        yield (
            ("corpora", index, "unlabelled"),
            f"corpora.{index}.unlabelled: `distillation.weight` is 0, so the teacher gives these "
            "clips no target; raise it, or remove the corpus",
        )
    oversample = searched.get("train.oversample")
    if oversample is not None and True in (oversample.choices or ()):
        yield (
            ("search", "space", "train.oversample"),
            "search.space: `train.oversample` draws clips by their class, and those of the corpus "
            f"`{job.corpora[index].title}` have none (`unlabelled: true`); remove that key, or "
            "remove the corpus",
        )
    for number, student in enumerate(job.students):
        if student.train.oversample:
            yield (
                ("students", number, "train", "oversample"),
                f"student `{student.name}`: `oversample` draws clips by their class, and those of "
                f"the corpus `{job.corpora[index].title}` have none (`unlabelled: true`); set "
                "`oversample: false`, or remove the corpus",
            )


def refuse_unlabelled(job: JobConfig) -> Iterator[tuple[Location, str]]:
    """Corpora without labels in a job without students."""
    for index, corpus in enumerate(job.corpora):
        if corpus.unlabelled:
            yield (
                ("corpora", index, "unlabelled"),
                f"corpora.{index}.unlabelled: this recipe trains no students, which alone learn "
                "from clips without labels; remove the corpus, or set `recipe: distillation`",
            )
