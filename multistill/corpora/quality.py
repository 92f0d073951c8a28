"""The quality report of a manifest: what is in it, how far raters agree, what looks wrong.

Everything but `signal` comes from headers and annotations. `signal` (silence, clipping)
needs samples, so a seeded sample of clips is decoded; it says how many of how many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from multistill.config import CLASSES, SplitConfig
from multistill.corpora.agreement import (
    distinct,
    krippendorff_alpha,
    leave_one_rater_out,
    vote_entropy,
)
from multistill.corpora.audio import content_digest, read_signal
from multistill.corpora.build import Gathered
from multistill.corpora.labels import Votes
from multistill.corpora.manifest import keys
from multistill.corpora.parallel import map_files
from multistill.corpora.rejections import Examples
from multistill.corpora.split import PARTS, hash64
from multistill.corpora.text import normal_text

RATE = 16_000
SHORTEST = 400  # samples at 16 kHz: below, Wav2Vec2's convolutions give no frame at all
LONGEST = 30.0  # seconds; longer clips are cut, windowed or quarantined by the encoders
SIGNAL_CLIPS = 500
COMPARED = 1000  # groups of recordings that look equal, and a tenth of their clips
SILENT_DBFS = -60.0
CLIPPED_SHARE = 1e-3
_DURATIONS = [0, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60, 120]
_NAMED = 10


def report(
    found: Gathered,
    before: pa.Table,
    rows: pa.Table,
    split_facts: Mapping[str, Any],
    leaked: Mapping[str, Any],
    split: SplitConfig,
    seed: int,
    workers: int | None = None,
) -> dict[str, Any]:
    """Everything `quality.json` holds, as JSON values.

    Args:
        before: rows before caps took some away.
        rows: the manifest.
        leaked: what `split.leaks` found.
    """
    return {
        "utterances": len(rows),
        "rejected": {"count": len(found.rejections), "by": dict(found.rejections.sorts)},
        "counts": {
            name: counts(rows[name])
            for name in ("corpus", "split", "label", "gender", "session", "speaker")
        },
        "classes": {
            name: class_counts(where(rows, "corpus", name, ["label"]))
            for name in pc.unique(rows["corpus"]).to_pylist()
        },
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
        "audio": headers(rows, found),
        "signal": signal(rows, seed, workers),
        "duplicates": duplicates(rows, workers),
        "text": {**transcripts(rows), "encodings": dict(found.encodings)},
        "raters": agreement(found),
        "notes": found.notes.json(),
    }


def counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value stands in a column, null as `none`; sorted by name."""
    table = pc.value_counts(column)
    pairs = ((entry["values"], entry["counts"]) for entry in table.to_pylist())
    return dict(sorted(("none" if name is None else name, count) for name, count in pairs))


def class_counts(rows: pa.Table) -> dict[str, int]:
    """Utterances of each class in class order, and `tie` for those without a label."""
    found = counts(rows["label"])
    return {**{name: found.get(name, 0) for name in CLASSES}, "tie": found.get("none", 0)}


def by_part(rows: pa.Table) -> dict[str, dict[str, int]]:
    return {part: class_counts(where(rows, "split", part, ["label"])) for part in PARTS}


def where(rows: pa.Table, column: str, value: str, kept: list[str]) -> pa.Table:
    """Some columns of the rows with a value; a filter copies what it keeps."""
    return rows.select(kept).filter(pc.equal(rows[column], value))


def training(rows: pa.Table) -> dict[str, Any]:
    """Class counts and mean vote shares of the training part."""
    part = where(rows, "split", "train", ["label", "label_soft"])
    total = sum((soft.sum(axis=0, dtype=float) for soft in matrices(part["label_soft"])), 0.0)
    mean = np.broadcast_to(np.asarray(total) / max(len(part), 1), len(CLASSES))
    return {
        "counts": class_counts(part),
        "mean_shares": {n: round(float(v), 6) for n, v in zip(CLASSES, mean, strict=True)},
    }


def matrices(column: pa.ChunkedArray) -> Iterator[npt.NDArray[Any]]:
    """A column of lists without nulls as [N, 7], chunk by chunk."""
    for chunk in column.chunks:
        yield chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(CLASSES))


def durations(rows: pa.Table) -> dict[str, Any]:
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


def headers(rows: pa.Table, found: Gathered) -> dict[str, Any]:
    """What headers tell: rates, channels, formats, and clips too short or too long."""
    rates = rows["sample_rate"].to_numpy()
    seconds = rows["duration_s"].to_numpy()

    def named(which: npt.NDArray[np.bool_]) -> dict[str, Any]:
        at = np.flatnonzero(which)
        some = rows["utterance_id"].take(pa.array(at[:_NAMED])).to_pylist()
        return {"count": len(at), "examples": some}

    return {
        "sample_rates": counts(pc.cast(rows["sample_rate"], pa.string())),
        "channels": counts(pc.cast(rows["channels"], pa.string())),
        "formats": dict(found.formats),
        "other_rate": named(rates != RATE),
        "too_short": named(np.round(seconds * RATE) < SHORTEST),
        "too_long": named(seconds > LONGEST),
    }


def signal(rows: pa.Table, seed: int, workers: int | None) -> dict[str, Any]:
    """Silence and clipping of a seeded sample of at most `SIGNAL_CLIPS` clips."""
    names = rows["utterance_id"]
    chosen = np.arange(len(rows))
    if len(rows) > SIGNAL_CLIPS:
        drawn = np.random.default_rng(hash64(seed, "signal")).choice(len(rows), SIGNAL_CLIPS, False)
        chosen = np.sort(drawn)
    paths = rows["audio_path"].take(pa.array(chosen)).to_pylist()
    silent, clipped, broken = Examples(), Examples(), Examples()
    levels, pauses = [], []
    read = map_files(read_signal, paths, workers)
    for at, found in zip(map(int, chosen), read, strict=True):
        name = names[at].as_py()
        if found is None:
            broken.add(name)
            continue
        levels.append(found.level_dbfs)
        pauses.append(found.silent_share)
        if found.peak_dbfs < SILENT_DBFS:
            silent.add(name)
        if found.clipped_share > CLIPPED_SHARE:
            clipped.add(name)
    return {
        "checked": len(paths),
        "of": len(rows),
        "silent": silent.json(),
        "clipped": clipped.json(),
        "undecodable": broken.json(),
        "level_dbfs": _quantiles(np.array(levels)),
        "silent_share": _quantiles(np.array(pauses)),
    }


def _quantiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    names = ("p5", "median", "p95")
    return {n: float(v) for n, v in zip(names, np.quantile(values, [0.05, 0.5, 0.95]), strict=True)}


def duplicates(rows: pa.Table, workers: int | None) -> dict[str, Any]:
    """Files of equal bytes under several ids.

    Files that share the sampled digest are read whole, as far as `COMPARED` groups of them
    with ten times as many clips go, small groups first. `groups`, `utterances` and
    `groups_on_both_sides` count files of equal bytes; `only_alike` is the groups that turned
    out to differ in between, `not_compared` those that were not read.
    """
    alike = rows.group_by("audio_digest").aggregate([("audio_digest", "count")])
    alike = alike.filter(pc.greater(alike["audio_digest_count"], 1))
    alike = alike.sort_by([(name, "ascending") for name in ("audio_digest_count", "audio_digest")])
    sizes = np.cumsum(alike["audio_digest_count"].to_numpy())
    compared = min(COMPARED, int(np.searchsorted(sizes, 10 * COMPARED, side="right")))
    chosen = alike["audio_digest"].slice(0, compared).combine_chunks()
    wanted = rows.select(["audio_digest", "audio_path", "utterance_id", "split"])
    wanted = wanted.filter(pc.is_in(rows["audio_digest"], chosen))
    paths = pc.unique(wanted["audio_path"]).to_pylist()
    whole = dict(zip(paths, map_files(content_digest, paths, workers), strict=True))
    found: dict[str, dict[str | None, list[tuple[str, str]]]] = {}
    for digest, path, *clip in zip(*(column.to_pylist() for column in wanted.columns), strict=True):
        found.setdefault(digest, {}).setdefault(whole[path], []).append((clip[0], clip[1]))
    same = [
        clips
        for group in found.values()
        for content, clips in group.items()
        if content is not None and len(clips) > 1
    ]
    return {
        "groups": len(same),
        "utterances": sum(map(len, same)),
        "groups_on_both_sides": sum(len({part for _, part in clips}) > 1 for clips in same),
        "compared_whole": len(paths),
        "only_alike": sum(len(group) > 1 for group in found.values()),
        "not_compared": len(alike) - compared,
        "examples": [[name for name, _ in clips[:_NAMED]] for clips in same[:_NAMED]],
    }


def transcripts(rows: pa.Table) -> dict[str, Any]:
    told = pc.binary_length(rows["text"]).to_numpy() > 0
    _, often = np.unique(keys(rows["text"], normal_text)[told], return_counts=True)
    return {
        "empty": int((~told).sum()),
        "distinct": len(often),
        "repeated": int(often[often > 1].sum()),
    }


def agreement(found: Gathered) -> dict[str, Any] | None:
    """Raters' agreement over all corpora and by corpus; None where nobody answered.

    Over every clip that can be read, but for ties that `split.ties: drop` leaves out, and
    before class caps, which are about training.
    """
    tallies = {title: tally for title, tally in found.raters.items() if tally.answers}
    if not tallies:
        return None
    by_corpus = {
        title: {**_agreement(tally.answers), "ties": found.ties[title], "each": tally.json()}
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
    edges = [round(0.25 * step, 2) for step in range(13)]
    return {
        "utterances": int(times.sum()),
        "answers": int((votes.sum(axis=1) * times).sum()),
        "krippendorff_alpha": krippendorff_alpha(votes, times),
        "leave_one_rater_out": asdict(ceiling) if ceiling else None,
        "unanimous": int(times[votes.max(axis=1) == votes.sum(axis=1)].sum()),
        "entropy_bits": {
            "mean": float(np.average(entropy, weights=times)),
            "histogram": {
                "edges": edges,
                "counts": np.histogram(entropy, edges, weights=times)[0].tolist(),
            },
        },
    }
