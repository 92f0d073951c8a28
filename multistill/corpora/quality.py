"""Quality report of a manifest: counts, rater agreement, suspicious recordings.

Everything but `signal` comes from headers, digests and annotations. `signal` (silence, clipping)
needs decoded audio, so it covers a seeded sample of clips, whose size it states.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from multistill.audio.errors import UnusableClipError, describe
from multistill.audio.levels import Levels, measure
from multistill.audio.reading import read_sound
from multistill.config import SplitConfig
from multistill.corpora.agreement import (
    distinct,
    krippendorff_alpha,
    leave_one_rater_out,
    vote_entropy,
)
from multistill.corpora.build import BuildResult
from multistill.corpora.labels import Votes
from multistill.corpora.manifest import (
    NOTHING,
    UNLABELLED,
    classes_of,
    content_hashes,
    has_class,
    tied,
)
from multistill.corpora.rejections import Examples
from multistill.corpora.rows import Columns, Rows, tables
from multistill.corpora.split import PARTS, hash64

RATE = 16_000
SHORTEST = 400  # samples at 16 kHz; with fewer, Wav2Vec2's convolutions give no frame
LONGEST = 30.0  # seconds; longer clips are cut, windowed or quarantined by the encoders
SIGNAL_CLIPS = 500
MEASURED_SECONDS = 300.0  # of one clip
CLIPPED_SHARE = 1e-3
_DURATIONS = [0, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60, 120]
_EXAMPLES = 10
_REASONS = 20  # kinds of rejections


def report(
    built: BuildResult,
    before: Rows,
    rows: Rows,
    split_facts: Mapping[str, Any],
    leaked: Mapping[str, Any],
    split: SplitConfig,
    seed: int,
) -> dict[str, Any]:
    """The contents of `quality.json`.

    Args:
        before: rows before class caps.
        rows: the manifest.
        split_facts: `facts` of the `Split`.
        leaked: the result of `split.leaks`.
    """
    return {
        "utterances": len(rows),
        "rejected": {
            "count": len(built.rejections),
            "by": dict(built.rejections.categories),
            "reasons": dict(built.rejections.kinds.most_common(_REASONS)),
        },
        "counts": {
            name: counts(rows[name])
            for name in ("corpus", "split", "label", "gender", "session", "speaker")
        },
        "classes": class_counts(rows, "corpus"),
        "split": {**split_facts, "classes": by_part(rows)},
        "balance": {
            "caps": dict(split.max_per_class),
            "before": training(before),
            "after": training(rows),
        },
        "leaks": {
            **{name: value for name, value in leaked.items() if isinstance(value, int)},
            "allowed": split.allow_leak,
        },
        "leaks_named": {name: v for name, v in leaked.items() if not isinstance(v, int)},
        "duration": durations(rows),
        "audio": headers(rows, built),
        "signal": signal(rows, seed),
        "duplicates": duplicates(rows),
        "text": {
            **transcripts(rows),
            "encodings": dict(built.encodings),
            "not_utf8": {title: asdict(text) for title, text in built.texts.items()},
        },
        "raters": agreement(built),
        "notes": built.notes.json(),
    }


def counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Number of rows per value of a column, null as `none`; sorted by name."""
    table = pc.value_counts(column)
    pairs = ((entry["values"], entry["counts"]) for entry in table.to_pylist())
    return dict(sorted(("none" if name is None else name, count) for name, count in pairs))


def class_counts(rows: Columns, column: str) -> dict[str, dict[str, int]]:
    """By value of a column, in the order of the rows: utterances per class in class order, and
    `tie` for those whose votes tie."""
    found: dict[str, Counter[str]] = {}
    for table in tables(rows, [column, "label", "votes"]):
        for value in pc.unique(table[column]).to_pylist():
            part = table.filter(pc.equal(table[column], value))
            number = found.setdefault(value, Counter())
            number.update(counts(part["label"]))
            number["tie"] += pc.sum(tied(part)).as_py() or 0
    return {
        value: {name: number[name] for name in (*classes_of(rows), "tie")}
        for value, number in found.items()
    }


def by_part(rows: Columns) -> dict[str, dict[str, int]]:
    found = class_counts(rows, "split")
    nothing = dict.fromkeys((*classes_of(rows), "tie"), 0)
    return {part: found.get(part, nothing) for part in PARTS}


def training(rows: Columns) -> dict[str, Any]:
    """Class counts of the training part, and mean vote shares of its utterances with a class."""
    total, known = 0.0, 0
    for table in tables(rows, ["split", "label_soft"]):
        part = table.filter(pc.equal(table["split"], "train"))
        for soft in matrices(part["label_soft"]):
            total, known = total + soft.sum(axis=0, dtype=float), known + int(has_class(soft).sum())
    classes = classes_of(rows)
    mean = np.broadcast_to(np.asarray(total) / max(known, 1), len(classes))
    return {
        "counts": by_part(rows)["train"],
        "mean_shares": {n: round(float(v), 6) for n, v in zip(classes, mean, strict=True)},
    }


def matrices(column: pa.ChunkedArray) -> Iterator[npt.NDArray[Any]]:
    """A column of lists of one length C, without nulls, as [N, C], chunk by chunk."""
    for chunk in column.chunks:
        yield chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def durations(rows: Rows) -> dict[str, Any]:
    seconds = rows["duration_s"].to_numpy()
    edges = [*_DURATIONS, max(float(seconds.max()), _DURATIONS[-1] + 1)]
    return {
        "hours": round(float(seconds.sum()) / 3600, 4),
        "mean": float(seconds.mean()),
        "min": float(seconds.min()),
        "max": float(seconds.max()),
        **_quantiles(seconds),
        "histogram": {"edges": edges, "counts": np.histogram(seconds, edges)[0].tolist()},
    }


def headers(rows: Rows, built: BuildResult) -> dict[str, Any]:
    """Sample rates, channels, formats, and clips that are too short or too long."""
    rates = rows["sample_rate"].to_numpy()
    seconds = rows["duration_s"].to_numpy()

    def cases(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        indices = np.flatnonzero(mask)
        examples = rows.take("utterance_id", indices[:_EXAMPLES])
        return {"count": len(indices), "examples": examples}

    return {
        "sample_rates": counts(pc.cast(rows["sample_rate"], pa.string())),
        "channels": counts(pc.cast(rows["channels"], pa.string())),
        "formats": dict(built.formats),
        "other_rate": cases(rates != RATE),
        "too_short": cases(np.round(seconds * RATE) < SHORTEST),
        "too_long": cases(seconds > LONGEST),
    }


def signal(rows: Rows, seed: int) -> dict[str, Any]:
    """Levels in a seeded sample of at most `SIGNAL_CLIPS` clips, and the clips to look at.

    Measured is what the encoders get: the mean of the channels at 16 kHz, the first
    `MEASURED_SECONDS` of it, around its own mean.
    """
    chosen = np.arange(len(rows))
    if len(rows) > SIGNAL_CLIPS:
        drawn = np.random.default_rng(hash64(seed, "signal")).choice(len(rows), SIGNAL_CLIPS, False)
        chosen = np.sort(drawn)
    names, paths = (rows.take(name, chosen) for name in ("utterance_id", "audio_path"))
    kinds = ("silent", "cancelled", "dead_channel", "clipped", "not_finite", "undecodable")
    cases = {kind: Examples() for kind in kinds}
    levels, silent_shares = [], []
    for name, path in zip(names, paths, strict=True):
        clip = _levels(path)
        if not isinstance(clip, Levels):
            kind = "not_finite" if clip.startswith("not finite") else "undecodable"
            cases[kind].add(f"{name}: {clip}")
            continue
        levels.append(clip.level_dbfs)
        silent_shares.append(clip.silent_share)
        for kind in ("silent", "cancelled", "dead_channel"):
            if getattr(clip, kind):
                cases[kind].add(name)
        if clip.clipped_share > CLIPPED_SHARE:
            cases["clipped"].add(name)
    return {
        "checked": len(paths),
        "of": len(rows),
        **{kind: examples.json() for kind, examples in cases.items()},
        "level_dbfs": _quantiles(np.array(levels)),
        "silent_share": _quantiles(np.array(silent_shares)),
    }


def _levels(path: str) -> Levels | str:
    """Levels of one recording, or why it cannot be measured."""
    try:
        sound = read_sound(path, max_seconds=MEASURED_SECONDS, measured=True)
        assert sound.levels is not None
        return measure(sound.samples, sound.levels)
    except UnusableClipError as error:
        return str(error)
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        return f"cannot be decoded: {type(error).__name__}: {describe(error)}"


def _quantiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    names = ("p5", "median", "p95")
    return {n: float(v) for n, v in zip(names, np.quantile(values, [0.05, 0.5, 0.95]), strict=True)}


def duplicates(rows: Rows) -> dict[str, Any]:
    """Byte-identical files under several ids."""
    _, code, times = np.unique(
        content_hashes(rows, "audio_digest"), return_inverse=True, return_counts=True
    )
    alike = times > 1
    sides = np.zeros(len(times), np.uint8)  # a bit for each part
    start = 0
    shown: list[tuple[int, str, int]] = []  # the smallest groups: size, digest, code
    for table in tables(rows, ["split", "audio_digest"]):
        codes = code[start : start + len(table)]
        start += len(table)
        for bit, part in enumerate((*PARTS, UNLABELLED)):
            here = pc.equal(table["split"], part).to_numpy()
            sides[codes[here]] |= np.uint8(1 << bit)
        own, first = np.unique(codes, return_index=True)
        own, first = own[alike[own]], first[alike[own]]
        digests = table["audio_digest"].take(pa.array(first)).to_pylist()
        groups = zip(times[own].tolist(), digests, own.tolist(), strict=True)
        shown = sorted({*shown, *groups})[:_EXAMPLES]
    examples = []
    for _, _, group in shown:
        examples.append(rows.take("utterance_id", np.flatnonzero(code == group)[:_EXAMPLES]))
    return {
        "groups": int(alike.sum()),
        "utterances": int(times[alike].sum()),
        "groups_on_both_sides": int((alike & (sides & (sides - 1) > 0)).sum()),
        "examples": examples,
    }


def transcripts(rows: Rows) -> dict[str, Any]:
    """Empty, distinct and repeated transcripts."""
    hashes = content_hashes(rows, "text")
    present = hashes != NOTHING
    _, times = np.unique(hashes[present], return_counts=True)
    return {
        "empty": int((~present).sum()),
        "distinct": len(times),
        "repeated": int(times[times > 1].sum()),
    }


def agreement(built: BuildResult) -> dict[str, Any] | None:
    """Rater agreement over all corpora and per corpus; None if there are no answers.

    It covers every readable clip except ties dropped by `split.ties: drop`, before class caps,
    which concern training only.
    """
    tallies = {title: tally for title, tally in built.raters.items() if tally.answers}
    if not tallies:
        return None
    by_corpus = {
        title: {
            **_agreement(tally.answers),
            "ties": built.ties[title],
            "each": tally.json(),
            "weighted_votes": tally.weighted,
        }
        for title, tally in tallies.items()
    }
    return {
        **_agreement(sum((tally.answers for tally in tallies.values()), Counter())),
        "corpora": by_corpus,
    }


def _agreement(answers: Mapping[Votes, int]) -> dict[str, Any]:
    votes, times = distinct(answers)
    entropy = vote_entropy(votes)
    ceiling = leave_one_rater_out(votes, times)
    classes = votes.shape[1]
    edges = [0.25 * step for step in range(math.ceil(4 * math.log2(classes)) + 1)]
    return {
        "utterances": int(times.sum()),
        "answers": int((votes.sum(axis=1) * times).sum()),
        "krippendorff_alpha": krippendorff_alpha(votes, times),
        "leave_one_rater_out": asdict(ceiling) if ceiling else None,
        "unanimous": int(times[votes.max(axis=1) == votes.sum(axis=1)].sum()),
        "classes": classes,
        "entropy_bits": {
            "mean": float(np.average(entropy, weights=times)),
            "histogram": {
                "edges": edges,
                "counts": np.histogram(entropy, edges, weights=times)[0].tolist(),
            },
        },
    }
