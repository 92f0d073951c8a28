"""What of continual learning is scored: which model answers for which corpus, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multistill.config.continual import Variant

RESULTS = "forgetting.json"

Answers = Mapping[str, tuple[str, str]]
"""Corpus -> name of the model that answers for its clips, and of the one with its classifier."""


@dataclass(frozen=True)
class Course:
    """A row of the tables: a method over an order of corpora.

    Attributes:
        order: names of the corpora as they are learnt.
        head: in words, how many classifiers there are: it decides what can be forgotten.
        steps: who answers after each corpus, for the corpora learnt so far.
    """

    variant: Variant
    order: tuple[str, ...]
    head: str
    steps: Sequence[Answers]

    @property
    def last(self) -> str:
        """Name of the model after all corpora."""
        return self.steps[-1][self.order[-1]][0]
