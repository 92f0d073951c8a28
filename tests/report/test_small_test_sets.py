"""Warnings of a small test set, from the speakers, sessions and labels of its clips."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from multistill.metrics.classification import class_support
from multistill.metrics.intervals import choose_clusters
from multistill.report.small_test_sets import small_test_set

CLASSES = ("angry", "happy", "sad", "neutral")
GROUPS = {"one-group", "few-speakers", "few-groups"}


def described(
    people: Sequence[tuple[str, str]], labels: Sequence[int], together: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """`test` and the class counts of metrics.json, as `evaluate` makes them.

    Args:
        people: speaker and session of every clip.
        labels: class of every clip.
        together: what the split keeps together.
    """
    speakers, sessions = zip(*people, strict=True)
    groups = speakers if together == "speaker" else sessions
    clusters = choose_clusters(groups, sessions, speakers, together)
    support = class_support(np.array(labels), clusters.index, len(CLASSES))
    rare = [
        {"class": CLASSES[i], "clips": int(support.clips[i]), "groups": int(support.groups[i])}
        for i in np.flatnonzero(support.rare)
    ]
    test = {
        "speakers": len(set(speakers)),
        "resampled": clusters.describe(),
        "rare_classes": rare,
    }
    counts = Counter(labels)
    return test, {name: counts[index] for index, name in enumerate(CLASSES)}


@given(
    speakers=st.integers(1, 24),
    sessions_each=st.integers(1, 6),
    shared=st.booleans(),
    together=st.sampled_from(["session", "speaker"]),
)
def test_speakers_are_counted_whatever_the_unit_and_one_warning_says_it(
    speakers: int, sessions_each: int, shared: bool, together: str
) -> None:
    """Speakers with several sessions each, or pairs of speakers in one session."""
    people = [
        (f"p{number}", f"s{number // 2 if shared else number * 10 + turn}")
        for number in range(speakers)
        for turn in range(sessions_each)
        for _ in range(12)
    ]
    test, clips = described(people, [i % 4 for i in range(len(people))], together)
    found = [each for each in small_test_set(test, clips) if each[0] in GROUPS]
    assert len(found) <= 1
    kind, title, text = found[0] if found else ("", "", "")
    count, unit = test["resampled"]["count"], test["resampled"]["unit"]
    if test["resampled"]["one_group"]:
        assert kind == "one-group"
    elif speakers < 6:
        several = "" if speakers == 1 else "s"
        assert (kind, title) == ("few-speakers", f"{speakers} TEST SPEAKER{several.upper()}")
        assert text.startswith(f"The test set has {speakers} speaker{several}")
        assert (unit == "speaker") == (f" in {count} {unit}s." not in text)
        # Resampled sessions say nothing about other speakers, resampled speakers a little.
        assert ("do not hold for others" in text) == (count > speakers)
    else:
        assert kind == ("few-groups" if count < 20 else "")
    if 1 < speakers < 6:
        assert re.search(rf"\b{speakers} speakers\b", text)


def test_one_speaker_in_many_sessions_of_which_each_is_kept_together() -> None:
    test, clips = described(
        [("p", f"s{i}") for i in range(40)], [i % 4 for i in range(40)], "session"
    )
    ((kind, title, text),) = small_test_set(test, clips)
    assert (kind, title) == ("few-speakers", "1 TEST SPEAKER")
    assert "has 1 speaker in 40 sessions. " in text


@given(
    counts=st.lists(st.integers(0, 14), min_size=4, max_size=4).filter(any),
    speakers=st.integers(6, 30),
)
def test_a_class_with_few_test_clips_is_named_once_with_its_number(
    counts: list[int], speakers: int
) -> None:
    labels = [index for index, count in enumerate(counts) for _ in range(count)]
    people = [(f"p{i % speakers}", f"s{i % speakers}") for i in range(len(labels))]
    test, clips = described(people, labels, "speaker")
    found = {kind: text for kind, _, text in small_test_set(test, clips)}
    rare = {row["class"] for row in test["rare_classes"]}
    for name, count in zip(CLASSES, counts, strict=True):
        mentioned = [kind for kind, text in found.items() if f"{name} ({count})" in text]
        expected = "rare-classes" if name in rare else "few-clips" if 0 < count < 10 else None
        assert mentioned == ([expected] if expected else [])
    if "few-clips" in found:
        few = [c for n, c in zip(CLASSES, counts, strict=True) if 0 < c < 10 and n not in rare]
        assert f"up to {100 / min(few):.0f} points" in found["few-clips"]
        uar = 100 / min(few) / sum(count > 0 for count in counts)
        assert f"UAR by up to {uar:.1f}." in found["few-clips"]
