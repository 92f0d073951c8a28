"""The page on a manifest: what `prepare` read, how it is split, and what it noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multistill.corpora import unlabelled
from multistill.corpora.coverage import coverage_gaps
from multistill.corpora.manifest import QUALITY, UNLABELLED
from multistill.report.corpus import describe_corpus
from multistill.report.pages import Block, Page, to_html
from multistill.report.tables import Cell, Table
from multistill.wording import counted
from multistill.workspace import read_json

_FINDINGS = {
    ("audio", "other_rate"): "not at 16 kHz (resampled)",
    ("audio", "too_short"): "too short for an encoder",
    ("audio", "too_long"): "longer than 30 s",
    ("signal", "silent"): "silent",
    ("signal", "cancelled"): "silent once their channels are mixed",
    ("signal", "dead_channel"): "with a silent channel",
    ("signal", "clipped"): "clipped",
    ("signal", "not_finite"): "with values that are not finite",
    ("signal", "undecodable"): "that cannot be decoded",
}


def data_page(manifest: Path, summary: Mapping[str, Any]) -> str:
    """The page as HTML that opens offline.

    Args:
        manifest: folder of manifest.parquet and quality.json.
        summary: of the `prepare` artifact.
    """
    corpus, quality = describe_corpus(manifest, summary), read_json(manifest / QUALITY)
    counts, folds = corpus["counts"], summary.get("folds", ())
    read = ", ".join(f"{name} {counted(n, 'clip')}" for name, n in counts["corpora"].items())
    tested = f" Cross-validation of {counted(len(folds), 'fold')}." if folds else ""
    page = Page(
        f"Data: {', '.join(counts['corpora'])}",
        "multistill prepare",
        f"{read}; {counted(counts['speakers'], 'speaker')} in "
        f"{counted(counts['sessions'], 'session')}, {counts['hours']:.2f} h; "
        f"clips or rows left out: {counts['rejected']:,}.{tested}",
        list(_blocks(corpus, quality, summary)),
        [(gap.title, gap.text) for gap in ([] if folds else coverage_gaps(corpus["class_counts"]))],
        [*_notes(quality), *unlabelled.sentences(summary["unlabelled"])],
    )
    return to_html(page)


def _blocks(
    corpus: Mapping[str, Any], quality: Mapping[str, Any], summary: Mapping[str, Any]
) -> Iterator[Block]:
    classes = list(corpus["class_counts"]["test"])
    numbers = ["clips", "sessions", "speakers", "hours", *classes, "ties"]
    rows: list[list[Cell]] = []
    for part, sizes in corpus["splits"].items():
        if sizes["utterances"]:
            rows.append(
                [part, sizes["utterances"], sizes["sessions"], sizes["speakers"]]
                + [round(sizes["hours"], 2)]
                + [corpus["class_counts"][part][name] for name in classes]
                + [sizes["ties"]]
            )
    yield Block("Parts", Table(["part", *numbers], rows, frozenset(numbers)))
    if summary.get("folds"):
        parts = ("train", "valid", "test", *(UNLABELLED,) * bool(summary["unlabelled"]))
        sizes = [
            [fold["name"], *(fold["splits"].get(part, 0) for part in parts)]
            for fold in summary["folds"]
        ]
        yield Block("Folds", Table(["fold", *parts], sizes, frozenset(parts)))
    if summary["rejected_kinds"]:
        kinds: list[list[Cell]] = [
            [group["kind"], group["count"], f"{group['source']}: {group['reason']}"]
            for group in summary["rejected_kinds"]
        ]
        note = "rejected.parquet lists all of them."
        columns = ["why", "clips or rows", "such as"]
        yield Block("Left out", Table(columns, kinds, frozenset(columns[1:2])), note=note)
    found: list[list[Cell]] = [
        [title, quality[section][name]["count"], ", ".join(quality[section][name]["examples"][:3])]
        for (section, name), title in _FINDINGS.items()
        if quality[section][name]["count"]
    ]
    if found:
        checked, clips = quality["signal"]["checked"], quality["signal"]["of"]
        note = f"What needs decoded audio was looked at in {checked} of {counted(clips, 'clip')}."
        columns = ["clips that are", "number", "such as"]
        yield Block("Recordings", Table(columns, found, frozenset(["number"])), note=note)


def _notes(quality: Mapping[str, Any]) -> Iterator[str]:
    length, text, raters = quality["duration"], quality["text"], quality["raters"]
    yield (
        f"Clips last {length['min']:.1f} to {length['max']:.1f} s, half of them less than "
        f"{length['median']:.1f} s."
    )
    yield (
        f"Transcripts: {text['distinct']:,} distinct, {text['empty']:,} empty; "
        f"{counted(quality['leaks']['transcript_rows'], 'test clip')} with a transcript that also "
        "occurs in training or validation."
    )
    if quality["duplicates"]["utterances"]:
        twice = counted(quality["duplicates"]["utterances"], "clip")
        yield f"Recordings that occur more than once: {twice}."
    if raters and raters["krippendorff_alpha"] is not None:
        yield (
            f"Raters agree with Krippendorff's alpha {raters['krippendorff_alpha']:.3f} on "
            f"{counted(raters['utterances'], 'clip')}."
        )
