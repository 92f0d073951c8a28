"""Building blocks of generated corpora: sentences, votes, tiny recordings, expected records."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from multistill.corpora.records import Note, Record, Rejected, Utterance

CLASSES = ("neutral", "happy", "surprise", "angry", "sad", "disgust", "fear")

_WHEN = ("오늘", "어제", "내일", "아침에", "저녁에", "지난주에", "방금", "가끔")
_WHO = ("내가", "동생이", "친구가", "선생님이", "우리가", "엄마가", "누나가", "옆집에서")
_WHAT = ("사과를", "노래를", "편지를", "우산을", "커피를", "자전거를", "그림을", "김밥을")
_DOES = ("샀어", "불렀어", "잃어버렸어", "만들었어", "가져왔어", "보여 줬어", "찾았어", "두고 왔어")
_TAGS = ("c/", "n/", "N/", "u/", "l/", "b/")


def sentence(rng: random.Random) -> str:
    """A made-up Korean sentence of four words."""
    return " ".join(rng.choice(words) for words in (_WHEN, _WHO, _WHAT, _DOES))


def tagged(rng: random.Random, text: str) -> str:
    """The sentence with transcript tags; removing them must give the sentence back."""
    words = text.split(" ")
    index = rng.randrange(len(words))
    kind = rng.randrange(4)
    if kind == 0:
        words.insert(index, rng.choice(_TAGS))
    elif kind == 1:
        words[index] = rng.choice(_TAGS) + words[index]
    elif kind == 2:
        words[index] += rng.choice("*+/")
    else:
        words[index] = "*" + words[index] + "+"
        words.insert(0, "b/")
    return " ".join(words)


@cache
def _noise() -> bytes:
    rng = random.Random(0)
    return struct.pack("<32768h", *(rng.randint(-6000, 6000) for _ in range(32768)))


def write_wav(path: Path, number: int, samples: int = 640, rate: int = 16000) -> None:
    """A mono 16-bit wav of noise; each `number` gives different content."""
    pool = _noise()
    body = pool[number * 2 % 40000 :][: samples * 2 - 4] + struct.pack("<I", number)
    path.write_bytes(
        b"RIFF"
        + struct.pack("<I", 36 + len(body))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
        + b"data"
        + struct.pack("<I", len(body))
        + body
    )


def votes_for(rng: random.Random, leaders: Sequence[str], raters: int = 10) -> list[str]:
    """One class per rater, shuffled, such that exactly `leaders` have the most votes."""
    others = [name for name in CLASSES if name not in leaders]
    most = min(raters // len(leaders), rng.randint(5, 9) if len(leaders) == 1 else 5)
    while True:
        rest = raters - most * len(leaders)
        drawn = [rng.choice(others) for _ in range(rest)]
        if not drawn or max(Counter(drawn).values()) < most:
            break
    votes = [name for name in leaders for _ in range(most)] + drawn
    rng.shuffle(votes)
    return votes


def counted(names: Iterable[str | None]) -> tuple[int, ...]:
    """Votes in class order."""
    counts = Counter(name for name in names if name)
    return tuple(counts[name] for name in CLASSES)


@dataclass
class Truth:
    """The records a loader must yield for a generated tree, in order.

    `rejected` holds (source, substring of the reason), `notes` (source, kind).
    """

    root: Path
    utterances: list[Utterance] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def differences(truth: Truth, records: Iterable[Record]) -> list[str]:
    """Every difference between a loader's records and the truth; empty if there is none."""
    records = list(records)
    problems: list[str] = []
    kept = [record for record in records if isinstance(record, Utterance)]
    for expected, actual in zip(truth.utterances, kept, strict=False):
        for name in Utterance._fields:
            if getattr(expected, name) != getattr(actual, name):
                problems.append(
                    f"{expected.utterance_id}.{name}: expected {getattr(expected, name)!r}, "
                    f"got {getattr(actual, name)!r}"
                )
    expected_ids = {item.utterance_id for item in truth.utterances}
    actual_ids = {item.utterance_id for item in kept}
    problems += [f"missing {name}" for name in sorted(expected_ids - actual_ids)]
    problems += [f"unexpected {name}" for name in sorted(actual_ids - expected_ids)]
    if len(kept) != len(truth.utterances):
        problems.append(f"{len(truth.utterances)} utterances expected, got {len(kept)}")

    rejected = [(item.source, item.reason) for item in records if isinstance(item, Rejected)]
    for source, part in truth.rejected:
        match = next((r for r in rejected if r[0] == source and part in r[1]), None)
        if match is None:
            reasons = [reason for other, reason in rejected if other == source]
            problems.append(f"{source} should be rejected for {part!r}, got: {reasons}")
        else:
            rejected.remove(match)
    problems += [f"unexpected rejection: {source}: {reason}" for source, reason in rejected]

    notes = Counter((item.source, item.kind) for item in records if isinstance(item, Note))
    expected_notes = Counter(truth.notes)
    problems += [f"missing note {key}" for key in (expected_notes - notes).elements()]
    problems += [f"unexpected note {key}" for key in (notes - expected_notes).elements()]
    return problems
