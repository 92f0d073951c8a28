"""Continual learning in the terminal, and the published figures that stand beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from multistill.config import JobConfig
from multistill.config.emotions import emotion_of
from multistill.config.labels import CLASSES
from multistill.report.terminal import cell, count
from multistill.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]

SOURCE = "continual_erc_etri (2023), README and test_result.json"
PROTOCOL = (
    "KEMDy19 and KEMDy20 v1.1, seven classes, 5 folds by session, trained on one corpus and then "
    "on the other; the corpus learnt first is tested after both; mean over folds"
)
METHODS = {
    "alone": "alone",
    "finetune": "finetune",
    "ewc 5000": "ewc",
    "adapter": "adapter",
    "adapter-untrained": "adapter-untrained",
}
"""Own method -> published one."""
_COLUMNS = ("alone", "finetune", "ewc", "adapter", "adapter-untrained")
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    metric: {kind: dict(zip(_COLUMNS, values, strict=True)) for kind, values in of_corpora.items()}
    for metric, of_corpora in {
        "weighted_f1": {
            "kemdy19": (0.704, 0.525, 0.600, 0.681, 0.511),
            "kemdy20": (0.871, 0.766, 0.762, 0.848, 0.834),
        },
        "macro_f1": {
            "kemdy19": (0.664, 0.465, 0.555, 0.657, 0.429),
            "kemdy20": (0.408, 0.270, 0.272, 0.387, 0.225),
        },
    }.items()
}
"""Published scores: metric -> kind of corpus -> method (docs/systems.md)."""
UNLIKE = (
    "Published figures on these corpora are of seven classes, and this job tells {} apart, so they "
    "do not stand beside its own."
)
FAULTS = (
    "for KEMDy19 the Fisher information of `ewc` is that of KEMDy20, the new corpus: in both "
    "directions the code reads the same loader, so .600 is no figure of EWC",
    "Fisher information of squared gradients of batches of ten, in training mode; one lambda",
    "`adapter` trains both corpora in turns, with a head per corpus that is told which: it cannot "
    "forget, while `finetune` and `ewc` share one head",
    "epochs are chosen by accuracy, where 87 % of KEMDy20 are neutral; no majority baseline",
    "the first 5 s of a clip, by an encoder of English speech; transcripts with their tags",
)


def describe_continual(results: Record, job: JobConfig) -> dict[str, Any]:
    """The results as they stand in report.json, with the published figures of the same corpora.

    Args:
        results: content of `forgetting.json`.
    """
    kinds = PUBLISHED["weighted_f1"]
    named: dict[str, str] = {
        corpus.kind: corpus.title for corpus in job.corpora if corpus.kind in kinds
    }
    orders = [course["order"] for course in results["courses"]]
    beside = len(named) == 2 == len(results["corpora"])
    unlike = beside and not _has_published_classes(job)
    return {
        **results,
        "orders": [order for number, order in enumerate(orders) if order not in orders[:number]],
        "published": _published(results, named) if beside and not unlike else None,
        "unlike_published": UNLIKE.format(", ".join(job.labels.classes)) if unlike else None,
    }


def _has_published_classes(job: JobConfig) -> bool:
    """Whether the job tells the seven emotions of the published figures apart, and no others."""
    labels, published = job.labels, {emotion_of(name) for name in CLASSES}
    kept = {emotion for emotion, own in labels.class_by_emotion().items() if own is not None}
    return kept == published and len(labels.classes) == len(published) and labels.others is None


def _published(results: Record, named: Mapping[str, str]) -> dict[str, Any]:
    """Published and own weighted F1 of the corpus that was learnt first, after both.

    Args:
        named: title of the job's corpus of each kind.
    """
    rows = []
    for kind, title in named.items():
        for course in results["courses"]:
            method = METHODS.get(course["method"])
            if course["order"][0] != title or method is None:
                continue
            own = course["given"]["matrix"][-1][title]
            rows.append(
                {
                    "corpus": title,
                    "method": course["method"],
                    "published": {metric: PUBLISHED[metric][kind][method] for metric in PUBLISHED},
                    "own": {metric: own[metric] for metric in PUBLISHED},
                }
            )
    return {"source": SOURCE, "protocol": PROTOCOL, "faults": list(FAULTS), "rows": rows}


def table(continual: Record) -> Table:
    """A rich table: one row per method and order, the corpora as columns, in the order learnt."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    order: Sequence[str] | None = None
    found = Table(
        title="after all corpora, each tested: UAR",
        caption="\n".join(lines(continual)),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    corpora = list(continual["corpora"])
    found.add_column("method", overflow="fold")
    for name in corpora:
        found.add_column(name, justify="right", overflow="fold")
    for title in ("backward\ntransfer", "without\ncorpus", "trained"):
        found.add_column(title, justify="right", no_wrap=True)
    majority = [continual["corpora"][name]["majority"]["metrics"]["uar"] for name in corpora]
    found.add_row("majority of the corpus", *map(cell, majority), "-", "-", "-", style="dim")
    for course in continual["courses"]:
        if course["order"] != order:
            order = course["order"]
            found.add_section()
            found.add_row(" then ".join(order), *("",) * (len(corpora) + 3), style="bold")
        last = course["given"]["matrix"][-1]
        method = f"{course['method']}\n{course['head']}"
        found.add_row(
            method + "\nchosen on validation" * course["chosen"],
            *(cell(last[name]["uar"]) for name in corpora),
            _change(course["given"]["backward"]["uar"]),
            cell(course["predicted"]["average"]["uar"]),
            count(course["parameters"]["trained"]),
        )
    return found


def _change(change: Mapping[str, float | None]) -> str:
    """A difference above its interval, with signs."""
    value, low, high = change["value"], change["low"], change["high"]
    if value is None:
        return "-"
    interval = "" if low is None or high is None else f"\n{low:+.2f} to {high:+.2f}"
    return f"{value:+.3f}{interval}"


def lines(continual: Record) -> list[str]:
    """What stands below the table."""
    clips = ", ".join(
        f"{name} {counted(part['clips'], 'test clip')}"
        for name, part in continual["corpora"].items()
    )
    found = [
        f"{clips}; {100 * continual['confidence']:.0f} % intervals over groups"
        + (f"; {continual['folds']} folds" if continual["folds"] > 1 else "")
        + (f"; means over {continual['seeds']} seeds" if continual["seeds"] > 1 else ""),
        "below a method: how many classifiers it has, which decides what it can forget; backward "
        "transfer: of the corpora learnt before the last, with the corpus of each clip given; "
        "without corpus: mean over the corpora where the most confident classifier answers; "
        "trained: parameters, of the last training",
    ]
    if continual["unlike_published"]:
        found.append(continual["unlike_published"])
    published = continual["published"]
    if published:
        found.append(f"published ({published['protocol']}), weighted F1 there / here:")
        found += [
            f"  {row['corpus']}, {row['method']}: {row['published']['weighted_f1']:.3f} / "
            f"{row['own']['weighted_f1']['value']:.3f}"
            for row in published["rows"]
        ]
    return found
