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
from multistill.corpora.manifest import classes_of, has_class, hash_strings, tied
from multistill.corpora.rejections import Examples
from multistill.corpora.split import PARTS, hash64
from multistill.corpora.text import normal_text

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
    before: pa.Table,
    rows: pa.Table,
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
        "classes": {
            name: class_counts(select(rows, "corpus", name, ["label", "votes"]))
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


def class_counts(rows: pa.Table) -> dict[str, int]:
    """Utterances per class in class order, and `tie` for those whose votes tie."""
    by_label = counts(rows["label"])
    return {
        **{name: by_label.get(name, 0) for name in classes_of(rows)},
        "tie": pc.sum(tied(rows)).as_py() or 0,
    }


def by_part(rows: pa.Table) -> dict[str, dict[str, int]]:
    return {part: class_counts(select(rows, "split", part, ["label", "votes"])) for part in PARTS}


def select(rows: pa.Table, column: str, value: str, columns: list[str]) -> pa.Table:
    """Some columns of the rows with a value; selected first, because a filter copies."""
    return rows.select(columns).filter(pc.equal(rows[column], value))


def training(rows: pa.Table) -> dict[str, Any]:
    """Class counts of the training part, and mean vote shares of its utterances with a class."""
    part = select(rows, "split", "train", ["label", "votes", "label_soft"])
    total, known = 0.0, 0
    for soft in matrices(part["label_soft"]):
        total, known = total + soft.sum(axis=0, dtype=float), known + int(has_class(soft).sum())
    classes = classes_of(rows)
    mean = np.broadcast_to(np.asarray(total) / max(known, 1), len(classes))
    return {
        "counts": class_counts(part),
        "mean_shares": {n: round(float(v), 6) for n, v in zip(classes, mean, strict=True)},
    }


def matrices(column: pa.ChunkedArray) -> Iterator[npt.NDArray[Any]]:
    """A column of lists of one length C, without nulls, as [N, C], chunk by chunk."""
    for chunk in column.chunks:
        yield chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


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


def headers(rows: pa.Table, built: BuildResult) -> dict[str, Any]:
    """Sample rates, channels, formats, and clips that are too short or too long."""
    rates = rows["sample_rate"].to_numpy()
    seconds = rows["duration_s"].to_numpy()

    def cases(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        indices = np.flatnonzero(mask)
        examples = rows["utterance_id"].take(pa.array(indices[:_EXAMPLES])).to_pylist()
        return {"count": len(indices), "examples": examples}

    return {
        "sample_rates": counts(pc.cast(rows["sample_rate"], pa.string())),
        "channels": counts(pc.cast(rows["channels"], pa.string())),
        "formats": dict(built.formats),
        "other_rate": cases(rates != RATE),
        "too_short": cases(np.round(seconds * RATE) < SHORTEST),
        "too_long": cases(seconds > LONGEST),
    }


def signal(rows: pa.Table, seed: int) -> dict[str, Any]:
    """Levels in a seeded sample of at most `SIGNAL_CLIPS` clips, and the clips to look at.

    Measured is what the encoders get: the mean of the channels at 16 kHz, the first
    `MEASURED_SECONDS` of it, around its own mean.
    """
    names = rows["utterance_id"]
    chosen = np.arange(len(rows))
    if len(rows) > SIGNAL_CLIPS:
        drawn = np.random.default_rng(hash64(seed, "signal")).choice(len(rows), SIGNAL_CLIPS, False)
        chosen = np.sort(drawn)
    paths = rows["audio_path"].take(pa.array(chosen)).to_pylist()
    kinds = ("silent", "cancelled", "dead_channel", "clipped", "not_finite", "undecodable")
    cases = {kind: Examples() for kind in kinds}
    levels, silent_shares = [], []
    for row, path in zip(map(int, chosen), paths, strict=True):
        name = names[row].as_py()
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


def duplicates(rows: pa.Table) -> dict[str, Any]:
    """Byte-identical files under several ids."""
    alike = rows.group_by("audio_digest").aggregate([("audio_digest", "count")])
    alike = alike.filter(pc.greater(alike["audio_digest_count"], 1))
    alike = alike.sort_by([(name, "ascending") for name in ("audio_digest_count", "audio_digest")])
    clips = rows.select(["audio_digest", "utterance_id", "split"])
    clips = clips.filter(pc.is_in(rows["audio_digest"], alike["audio_digest"].combine_chunks()))
    parts = clips.group_by("audio_digest").aggregate([("split", "count_distinct")])
    shown = alike["audio_digest"].slice(0, _EXAMPLES).to_pylist()
    examples: dict[str, list[str]] = {digest: [] for digest in shown}
    digests = clips["audio_digest"]
    shown_clips = clips.filter(pc.is_in(digests, pa.array(shown, digests.type)))
    for digest, name in zip(
        shown_clips["audio_digest"].to_pylist(),
        shown_clips["utterance_id"].to_pylist(),
        strict=True,
    ):
        examples[digest].append(name)
    return {
        "groups": len(alike),
        "utterances": len(clips),
        "groups_on_both_sides": pc.sum(
            pc.greater(parts["split_count_distinct"], 1).cast(pa.int64())
        ).as_py()
        or 0,
        "examples": [names[:_EXAMPLES] for names in examples.values()],
    }


def transcripts(rows: pa.Table) -> dict[str, Any]:
    """Empty, distinct and repeated transcripts."""
    present = pc.binary_length(rows["text"]).to_numpy() > 0
    _, times = np.unique(hash_strings(rows["text"], normal_text)[present], return_counts=True)
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
