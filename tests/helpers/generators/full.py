"""Both KEMDy corpora at full size, laid out so that a loader must find the published counts.

The counts are aggregates from public descriptions of the corpora; which segment gets
which class is random.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.generators import kemdy19, kemdy20
from helpers.generators.kemdy19 import Shape
from helpers.generators.parts import CLASSES, Truth

KEMDY19_SINGLE = {
    "neutral": 3835,
    "angry": 1844,
    "happy": 1404,
    "surprise": 997,
    "sad": 768,
    "disgust": 395,
    "fear": 384,
}
"""Speakers' rows with a single label, by class: 9,627 in total."""
KEMDY19_SCRIPT = 5451
KEMDY19_MALE = 4914
KEMDY19_SPOKEN, KEMDY19_HEARD = 10279, 10287
KEMDY19_UNMAPPED = 12

KEMDY20_SEGMENTS = 13462
KEMDY20_SINGLE = 12828
KEMDY20_FIVE = 12724
KEMDY20_SHARES = {"neutral": 0.877, "happy": 0.088, "sad": 0.013, "surprise": 0.012, "angry": 0.011}


def _ties(rng: random.Random, number: int) -> list[Sequence[str]]:
    return [rng.sample(CLASSES, 2) for _ in range(number)]


def _spread(items: Sequence[Shape], parts: int) -> list[list[Shape]]:
    return [list(items[index::parts]) for index in range(parts)]


def make_kemdy19(root: Path, seed: int = 0, samples: int = 480) -> Truth:
    """20 sessions, 20,566 rows, 12 of them without a wav and txt pair."""
    rng = random.Random(seed)
    single = sum(KEMDY19_SINGLE.values())
    leaders: list[Sequence[str]] = [
        (name,) for name, number in KEMDY19_SINGLE.items() for _ in range(number)
    ]
    rng.shuffle(leaders)
    # The numbers by scene and by gender are published too, so they are assigned, not drawn.
    scripted = [index < KEMDY19_SCRIPT for index in range(single)]
    male = [index < KEMDY19_MALE for index in range(single)]
    rng.shuffle(scripted)
    rng.shuffle(male)
    shapes = [
        Shape(names, _scene(rng, script), "M" if man else "F")
        for names, script, man in zip(leaders, scripted, male, strict=True)
    ]
    tied = [
        Shape(names, _scene(rng, rng.random() < 0.5), rng.choice("FM"))
        for names in _ties(rng, KEMDY19_SPOKEN - single)
    ]
    sessions = _spread(shapes, 20)
    for session_shapes, more in zip(sessions, _spread(tied, 20), strict=True):
        session_shapes += more
    # Eight ids are in listeners' tables only; with the two rows each of two further ids they
    # are the twelve rows without a recording.
    only = KEMDY19_HEARD - KEMDY19_SPOKEN
    unpaired = (KEMDY19_UNMAPPED - only) // 2
    return kemdy19.make(
        root,
        sessions=range(1, 21),
        glitches=False,
        seed=seed,
        samples=samples,
        shapes=sessions,
        heard_only=dict.fromkeys(range(1, 1 + only), 1),
        unpaired={_last_id(s, number) for number, s in enumerate(sessions[:unpaired], 1)},
    )


def _scene(rng: random.Random, script: bool) -> str:
    return f"script{rng.randint(1, 6):02d}" if script else f"impro{rng.randint(1, 4):02d}"


def _last_id(shapes: Sequence[Shape], session: int) -> str:
    """The id of the last segment, which is a tie."""
    last = shapes[-1]
    number = sum(s.scene == last.scene and s.gender == last.gender for s in shapes)
    return f"Sess{session:02d}_{last.scene}_{last.gender}{number:03d}"


def make_kemdy20(root: Path, seed: int = 0, samples: int = 480) -> Truth:
    """40 sessions, 13,462 segments; rows of session 17 are numbered 42."""
    rng = random.Random(seed)
    counts = kemdy20_counts()
    leaders: list[Sequence[str]] = [
        (name,) for name, number in counts.items() for _ in range(number)
    ]
    leaders += _ties(rng, KEMDY20_SEGMENTS - KEMDY20_SINGLE)
    rng.shuffle(leaders)
    return kemdy20.make(
        root,
        sessions=range(1, 41),
        segments_per_session=[len(leaders[index::40]) for index in range(40)],
        scripts=6,
        glitches=False,
        seed=seed,
        samples=samples,
        leaders=leaders,
    )


def kemdy20_counts() -> Mapping[str, int]:
    """Single-label segments of each class, which round to the published shares."""
    counts = {name: round(share * KEMDY20_FIVE) for name, share in KEMDY20_SHARES.items()}
    counts["neutral"] += KEMDY20_FIVE - sum(counts.values())
    rest = KEMDY20_SINGLE - KEMDY20_FIVE
    return {**counts, "disgust": rest // 2, "fear": rest - rest // 2}
