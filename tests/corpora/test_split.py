"""Splits: who is tested on depends on nothing but the seed and the group's own name."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import SplitConfig
from multistill.corpora.split import (
    PARTS,
    Split,
    assign,
    deal_folds,
    leaks,
    position,
    refuse_leaks,
    split_rows,
)
from multistill.errors import UsageError

steady = settings(max_examples=60, deadline=None)
names = st.text(alphabet="abc가나/_-0123456789", min_size=1, max_size=12)
seeds = st.integers(0, 2**31 - 1)


def table(rows: list[tuple[str, str, str]], texts: list[str] | None = None) -> pa.Table:
    """Rows of (utterance, session, speaker)."""
    return pa.table(
        {
            "utterance_id": pa.array([row[0] for row in rows], pa.string()),
            "session": pa.array([row[1] for row in rows], pa.string()),
            "speaker": pa.array([row[2] for row in rows], pa.string()),
            "text": pa.array(texts or [row[0] for row in rows], pa.string()),
            "audio_digest": pa.array([row[0] for row in rows], pa.string()),
        }
    )


def dialogues(sessions: int, turns: int = 4) -> pa.Table:
    """Sessions of two speakers who talk in turns."""
    return table(
        [
            (f"c/s{s:02d}u{t}", f"c/Session{s:02d}", f"c/User{2 * s + t % 2:03d}")
            for s in range(1, sessions + 1)
            for t in range(turns)
        ]
    )


def part_of(rows: pa.Table, split: Split) -> dict[str, str]:
    ids = rows["utterance_id"].to_pylist()
    return {name: PARTS[at] for name, at in zip(ids, split.part, strict=True)}


@steady
@given(st.sets(names, min_size=3, max_size=30), st.sets(names, max_size=30), seeds)
def test_groups_stay_where_they_are_when_others_join(
    here: set[str], more: set[str], seed: int
) -> None:
    before = assign(here, 0.2, 0.15, seed)
    after = assign(here | more, 0.2, 0.15, seed)
    moved = {name for name in here if before.part[name] != after.part[name]}
    assert moved <= {*before.reassigned, *after.reassigned}


@steady
@given(st.sets(names, min_size=3, max_size=30), seeds)
def test_every_part_asked_for_has_a_group(groups: set[str], seed: int) -> None:
    made = assign(groups, 0.2, 0.15, seed)
    assert set(made.part) == groups
    assert set(made.part.values()) == set(PARTS)
    wanted = {
        name: "test" if (at := position(name, seed)) < 0.2 else "valid" if at < 0.35 else "train"
        for name in groups
    }
    assert {n for n in groups if made.part[n] != wanted[n]} == set(made.reassigned)


@steady
@given(st.integers(10, 60), st.integers(0, 500), seeds)
def test_numbered_sessions_are_spread_evenly(count: int, first: int, seed: int) -> None:
    made = assign([f"kemdy/Session{first + at:02d}" for at in range(count)], 0.2, 0.15, seed)
    tested = sum(part == "test" for part in made.part.values())
    held = sum(part == "valid" for part in made.part.values())
    assert abs(tested - 0.2 * count) <= 2
    assert abs(held - 0.15 * count) <= 2
    assert not made.reassigned


def test_another_seed_is_another_split() -> None:
    groups = [f"s{at}" for at in range(40)]
    splits = [tuple(assign(groups, 0.2, 0.15, seed).part.values()) for seed in range(6)]
    assert len(set(splits)) == 6


def test_too_few_groups_are_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"at least 3 groups and there are 2.*split\.valid: 0"):
        assign(["a", "b"], 0.2, 0.15, 0)
    assert set(assign(["a", "b"], 0.2, 0.0, 0).part.values()) == {"train", "test"}
    assert assign(["a"], 0.0, 0.0, 0).part == {"a": "train"}


@steady
@given(st.integers(5, 40), st.integers(2, 8), seeds)
def test_folds_cover_all_groups_outside_test_in_even_numbers(
    count: int, folds: int, seed: int
) -> None:
    part = assign([f"s{at}" for at in range(count)], 0.2, 0.15, seed).part
    fold = deal_folds(part, folds, seed)
    assert fold.keys() == {name for name, where in part.items() if where != "test"}
    for chosen in (lambda where: where == "train", lambda where: where != "test"):
        sizes = np.bincount([at for n, at in fold.items() if chosen(part[n])], minlength=folds)
        assert sizes.max() - sizes.min() <= 1


@steady
@given(st.integers(3, 25), seeds)
def test_a_session_is_on_one_side_and_in_one_fold(sessions: int, seed: int) -> None:
    rows = dialogues(sessions)
    for by in ("session", "speaker"):
        made = split_rows(rows, SplitConfig(by=by), seed)
        keys = list(zip(rows["session"].to_pylist(), made.part, made.fold, strict=True))
        assert len(set(keys)) == sessions
        assert ((made.part == 2) == (made.fold == -1)).all()
        found = leaks(rows, made.part)
        assert (found["sessions"], found["speakers"]) == (0, 0)
        refuse_leaks(found, SplitConfig())


@steady
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=60), seeds)
def test_by_speaker_never_parts_a_speaker_or_a_session(
    links: list[tuple[int, int]], seed: int
) -> None:
    rows = table([(f"u{i}", f"ses{s}", f"spk{p}") for i, (s, p) in enumerate(links)])
    try:
        made = split_rows(rows, SplitConfig(by="speaker"), seed)
    except UsageError as error:
        assert "at least 3 groups" in str(error)
        return
    found = leaks(rows, made.part)
    assert (found["sessions"], found["speakers"]) == (0, 0)


people = st.text(alphabet="abcXYZ0129", min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sets(people, min_size=1, max_size=3), min_size=8, max_size=24),
    st.lists(st.tuples(st.integers(0, 40), st.one_of(st.none(), people)), max_size=12),
    seeds,
)
def test_by_speaker_nobody_moves_when_people_join_a_session_or_come_back_later(
    sessions: list[set[str]], joined: list[tuple[int, str | None]], seed: int
) -> None:
    """Places are dates without leading zeros; `None` is a new face, a name one that is known."""
    here = [(f"u{s}{p}", f"day{s}", p) for s, who in enumerate(sessions) for p in sorted(who)]
    more = []
    for at, (session, person) in enumerate(joined):
        if person is None and session < len(sessions):  # a new face in a session there is
            more.append((f"n{at}", f"day{session}", f"{'aZ'[at % 2]}new{at}"))
        else:  # a session of its own, of one person
            more.append((f"n{at}", f"day{100 + at}", person or f"0new{at}"))
    try:
        before, after = (
            split_rows(table(rows), SplitConfig(by="speaker"), seed) for rows in (here, here + more)
        )
    except UsageError:  # everybody is linked to everybody
        return
    if before.facts["reassigned"] or after.facts["reassigned"]:
        return
    assert before.part.tolist() == after.part.tolist()[: len(here)]


def test_a_lone_speaker_whom_another_joins_stays() -> None:
    alone = [(f"u{s}", f"ses{s:02d}", f"kim{s}") for s in range(20)]
    joined = [(f"v{s}", f"ses{s:02d}", f"lee{s}") for s in range(20)]
    for seed in range(5):
        before = split_rows(table(alone), SplitConfig(by="speaker"), seed).part
        after = split_rows(table(alone + joined), SplitConfig(by="speaker"), seed).part
        assert before.tolist() == after[:20].tolist() == after[20:].tolist()


@pytest.mark.parametrize(
    ("said", "empty"),
    [
        (["train"] * 20, "test"),
        (["test"] * 20, "train"),
        (["dev"] * 20, "train and test"),
        (["train"] * 12 + ["dev"] * 8, "test"),
        (["test"] * 12 + ["dev"] * 8, "train"),
    ],
)
def test_a_column_that_leaves_a_part_empty_is_refused(said: list[str], empty: str) -> None:
    with pytest.raises(UsageError, match=rf"none of the 20 utterances into {empty}; name some"):
        split_rows(dialogues(10, turns=2), SplitConfig(by="column"), 1, said)


def test_a_column_without_valid_needs_a_share_to_cut() -> None:
    said = ["train"] * 12 + ["test"] * 8
    with pytest.raises(UsageError, match=r"into valid; .*set split\.valid to cut it from train"):
        split_rows(dialogues(10, turns=2), SplitConfig(by="column", valid=0.0), 1, said)


def test_a_random_split_of_too_few_rows_is_refused() -> None:
    config = SplitConfig(by="random", allow_leak=True)
    refused = 0
    for seed in range(20):
        try:
            made = split_rows(dialogues(3, turns=2), config, seed)
        except UsageError as error:
            refused += 1
            assert "none of the 6 utterances into" in str(error)
            assert "add data" in str(error)
        else:
            assert set(made.part.tolist()) == {0, 1, 2}
    assert refused


def test_a_speaker_in_two_sessions_is_refused_by_session_and_kept_together_by_speaker() -> None:
    rows = table([(f"u{s}", f"ses{s:02d}", f"spk{s % 6}") for s in range(12)])
    made = split_rows(rows, SplitConfig(), 3)
    found = leaks(rows, made.part)
    assert found["speakers"] > 0
    with pytest.raises(UsageError, match=r"speakers on both sides .*`by: speaker`"):
        refuse_leaks(found, SplitConfig())
    refuse_leaks(found, SplitConfig(allow_leak=True))
    again = leaks(rows, split_rows(rows, SplitConfig(by="speaker"), 3).part)
    assert again["speakers"] == 0


def test_an_utterance_without_a_session_cannot_be_split_by_session() -> None:
    rows = table([("u1", "s1", "p1"), ("u2", "", "p2"), ("u3", "s3", "p3")])
    with pytest.raises(UsageError, match=r"split\.by: session needs a session.*u2 has none"):
        split_rows(rows, SplitConfig(), 0)


@steady
@given(st.integers(20, 200), st.integers(1, 100), seeds)
def test_a_random_split_never_moves_an_utterance_either(count: int, more: int, seed: int) -> None:
    config = SplitConfig(by="random", allow_leak=True, test=0.2, valid=0.1)
    rows = [(f"u{at}", "s", "p") for at in range(count + more)]
    few, many = table(rows[:count]), table(rows)
    try:
        before = part_of(few, split_rows(few, config, seed))
    except UsageError:  # none in valid, by chance
        return
    after = part_of(many, split_rows(many, config, seed))
    assert before == {name: after[name] for name in before}


def test_a_random_split_has_the_published_shares_and_is_called_leaky() -> None:
    rows = dialogues(40, turns=100)
    config = SplitConfig(by="random", allow_leak=True, test=0.2, valid=0.0)
    made = split_rows(rows, config, 123)
    assert 0.18 < (made.part == 2).mean() < 0.22
    assert not (made.part == 1).any()
    found = leaks(rows, made.part)
    assert found["sessions"] == 40
    assert found["speakers"] == 80
    with pytest.raises(UsageError, match="40 sessions on both sides"):
        refuse_leaks(found, SplitConfig())


def test_a_given_column_is_followed_and_valid_is_cut_from_train_by_session() -> None:
    rows = dialogues(10, turns=2)
    given_split = ["test" if at >= 16 else "Training" for at in range(20)]
    made = split_rows(rows, SplitConfig(by="column"), 5, given_split)
    assert (made.part == 2).tolist() == [at >= 16 for at in range(20)]
    assert 1 <= (made.part == 1).sum() <= 6
    assert made.facts["valid_from_train"] is True
    found = leaks(rows, made.part)
    assert (found["sessions"], found["speakers"]) == (0, 0)
    whole = [["train", "dev", "test"][at // 2 % 3] for at in range(20)]
    kept = split_rows(rows, SplitConfig(by="column"), 5, whole)
    assert [PARTS[at] for at in kept.part[:6]] == ["train"] * 2 + ["valid"] * 2 + ["test"] * 2


@pytest.mark.parametrize("value", [None, "holdout"])
def test_a_row_without_a_usable_split_is_named(value: str | None) -> None:
    rows = dialogues(2, turns=2)
    with pytest.raises(UsageError, match=r"c/s01u1 says `(holdout)?` where train, valid or test"):
        split_rows(rows, SplitConfig(by="column"), 0, ["train", value, "test", "test"])


def test_transcripts_are_compared_as_evaluate_does() -> None:
    rows = table([("u0", "s0", "p0"), ("u1", "s1", "p1")], texts=["Thank  You", "thank you"])
    assert leaks(rows, np.array([0, 2], np.int8))["transcripts"] == 1


def test_equal_transcripts_on_both_sides_are_counted_and_empty_ones_are_not() -> None:
    rows = table(
        [(f"u{at}", f"s{at}", f"p{at}") for at in range(6)],
        texts=["그래", "그래", "아니", "", "", "그래"],
    )
    found = leaks(rows, np.array([0, 2, 0, 0, 2, 2], np.int8))
    assert found["transcripts"] == 1
    assert found["transcript_rows"] == 2
    assert found["recordings"] == 0
