"""The Jinja environment of all pages, and how they write figures.

Pages of tables use it without what draws figures, whose imports take a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from multistill.evaluation.figures import over_seeds
from multistill.report.label_shares import percent
from multistill.report.terminal import count, describe_encoders, score
from multistill.wording import counted, with_code

TEMPLATES = "templates"


@cache
def environment() -> jinja2.Environment:
    """The Jinja environment: values are escaped and undefined names are errors."""
    folder = resources.files("multistill.report") / TEMPLATES
    jinja_environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja_environment.globals.update(over_seeds=over_seeds, grouped_answers=grouped_answers)
    jinja_environment.filters.update(
        score=_score,
        signed=_signed,
        parameters=count,
        encoders=describe_encoders,
        counted=counted,
        with_code=lambda text: Markup(with_code(text)),  # noqa: S704, which escapes
        number=_number,
        percent=_percent,
        share=percent,
        seconds=_seconds,
    )
    return jinja_environment


def _score(metric: Mapping[str, float | None]) -> Markup:
    value, _, interval = score(metric).partition(" ")
    if not interval:
        return Markup("<b>{}</b>").format(value)
    return Markup('<b>{}</b> <span class="ci">{}</span>').format(value, interval)


def _signed(metric: Mapping[str, float | None]) -> Markup:
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return Markup("<b>-</b>")
    if low is None or high is None:
        return Markup("<b>{}</b>").format(_minus(value))
    return Markup('<b>{}</b> <span class="ci">[{}, {}]</span>').format(
        *(_minus(number) for number in (value, low, high))
    )


def _minus(number: float) -> str:
    return f"{number:+.3f}".replace("-", "\u2212")


def _number(value: float | int | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _seconds(value: float) -> str:
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def grouped_answers(answers: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Per answered class, the most frequent first: who answered it, and with which probability."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for name, answer in answers.items():
        groups.setdefault(answer["class"], []).append((name, answer["probability"]))
    return sorted(groups.items(), key=lambda group: -len(group[1]))
