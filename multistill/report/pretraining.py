"""What the branches of a `va-fusion` had learnt before it, on page and terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multistill.wording import counted
from multistill.workspace import Artifact


def describe_pretraining(pretrained: Artifact | None) -> list[dict[str, Any]]:
    """Scores of the branches as they stand in report.json.

    Args:
        pretrained: of the recipe `pretrain`; None: there is none.

    Returns:
        per branch `model`, `dimension`, `clips` of test with a value, `ccc` and `rmse` (on the
        scale from 1 to 5), of the job's first seed, over the test clips of all folds.
    """
    scores: Mapping[str, Mapping[str, Any]] = pretrained.summary["scores"] if pretrained else {}
    return [{"model": name, **values} for name, values in scores.items()]


def pretraining_lines(branches: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line per branch below the terminal's table.

    Args:
        branches: `pretraining` of report.json.
    """
    for branch in branches:
        ccc, rmse = (
            "-" if branch[name] is None else f"{branch[name]:.3f}" for name in ("ccc", "rmse")
        )
        yield (
            f"before the teacher, {branch['model']}: {branch['dimension']} CCC {ccc}, RMSE {rmse} "
            f"on {counted(branch['clips'], 'clip')}"
        )
