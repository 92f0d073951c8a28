"""Vote counts, shares, tie policies and spellings of class names."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import CLASSES
from multistill.corpora.labels import (
    LabelReader,
    TiePolicy,
    count,
    decide,
    leaders,
    one_hot,
    shares,
    split_tie,
    winner,
)

POLICIES: tuple[TiePolicy, ...] = ("soft", "drop", "first", "multi")

votes_of = st.lists(st.integers(0, 30), min_size=7, max_size=7).filter(any)
ratings_of = st.lists(st.one_of(st.none(), st.sampled_from(CLASSES)), max_size=20)


@settings(deadline=None)
@given(ratings_of)
def test_counts_are_the_number_of_raters_who_chose_the_class(ratings: list[str | None]) -> None:
    expected = Counter(ratings)
    assert count(ratings, CLASSES) == tuple(expected[name] for name in CLASSES)


@settings(deadline=None)
@given(votes_of)
def test_shares_sum_to_one_and_keep_the_order_of_the_votes(votes: list[int]) -> None:
    result = shares(votes)
    assert sum(result) == pytest.approx(1.0)
    assert [share * sum(votes) for share in result] == pytest.approx(votes)


@settings(deadline=None)
@given(votes_of, st.integers(2, 9))
def test_shares_and_winner_do_not_depend_on_the_number_of_raters(
    votes: list[int], factor: int
) -> None:
    more = [vote * factor for vote in votes]
    assert shares(more) == pytest.approx(shares(votes))
    assert winner(more, CLASSES) == winner(votes, CLASSES)


@settings(deadline=None)
@given(votes_of)
def test_the_winner_has_more_votes_than_any_other_class(votes: list[int]) -> None:
    label = winner(votes, CLASSES)
    best = sorted(votes, reverse=True)
    if best[0] == best[1]:
        assert label is None
    else:
        assert label is not None and votes[CLASSES.index(label)] == best[0]


@settings(deadline=None)
@given(votes_of)
def test_leaders_are_all_classes_with_the_most_votes(votes: list[int]) -> None:
    assert [CLASSES.index(name) for name in leaders(votes, CLASSES)] == [
        i for i, vote in enumerate(votes) if all(vote >= other for other in votes)
    ]


@settings(deadline=None)
@given(votes_of, st.sampled_from(POLICIES))
def test_tie_policies_affect_only_ties(votes: list[int], policy: TiePolicy) -> None:
    decision = decide(votes, CLASSES, policy)
    if winner(votes, CLASSES) is not None:
        assert (decision.keep, decision.label, decision.tied) == (
            True,
            winner(votes, CLASSES),
            False,
        )
        assert decision.soft == shares(votes)
    else:
        assert decision.tied


@settings(deadline=None)
@given(votes_of)
def test_every_policy_gives_the_vote_shares_or_equal_shares_of_the_leaders(
    votes: list[int],
) -> None:
    tied = leaders(votes, CLASSES)
    for policy in POLICIES:
        soft = decide(votes, CLASSES, policy).soft
        assert sum(soft) == pytest.approx(1.0)
        if policy == "multi" and len(tied) > 1:
            support = [name for name, share in zip(CLASSES, soft, strict=True) if share]
            assert tuple(support) == tied and len(set(soft) - {0.0}) == 1
        else:
            assert soft == shares(votes)


def test_the_result_of_each_policy_for_a_tie() -> None:
    tie = (0, 4, 0, 4, 2, 0, 0)
    assert winner(tie, CLASSES) is None and leaders(tie, CLASSES) == ("happy", "angry")
    soft, drop, first, multi = (decide(tie, CLASSES, policy) for policy in POLICIES)
    assert (soft.keep, soft.label, soft.soft) == (True, None, (0, 0.4, 0, 0.4, 0.2, 0, 0))
    assert not drop.keep and drop.label is None
    assert (first.keep, first.label, first.soft) == (True, "happy", soft.soft)
    assert (multi.keep, multi.label, multi.soft) == (True, None, (0, 0.5, 0, 0.5, 0, 0, 0))


@pytest.mark.parametrize("votes", [(0,) * 7, (), (-1, 1, 0, 0, 0, 0, 2)])
def test_invalid_votes_are_refused(votes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="votes"):
        shares(votes)


@settings(deadline=None)
@given(st.permutations(CLASSES), st.integers(1, 3), st.sampled_from(["", " "]))
def test_the_names_of_a_tie_may_be_in_any_order(order: list[str], width: int, space: str) -> None:
    names = order[:width]
    assert set(split_tie(f"{space};{space}".join(names))) == set(names)
    assert len(split_tie(";".join(names) + ";")) == width


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("disqust", "disgust"),
        ("Sadness", "sad"),
        ("HAPPINESS", "happy"),
        ("anger", "angry"),
        (" Neutral\t", "neutral"),
        ("기쁨", "happy"),
        ("행복", "happy"),
        ("놀람", "surprise"),
        ("분노", "angry"),
        ("슬픔", "sad"),
        ("혐오", "disgust"),
        ("공포", "fear"),
        ("중립", "neutral"),
        ("boredom", None),
        ("불안", None),
        ("", None),
    ],
)
def test_spellings(name: str, label: str | None) -> None:
    reader = LabelReader()
    assert reader[name] == label
    assert reader[unicodedata.normalize("NFD", name)] == label


def test_the_label_map_takes_precedence() -> None:
    assert LabelReader(corpus={"boredom": "neutral"})["Boredom"] == "neutral"
    assert LabelReader(corpus={"happy": "surprise"})["happy"] == "surprise"
    assert LabelReader(corpus={"boredom": "neutral"})["sad"] == "sad"


@pytest.mark.parametrize("label", CLASSES)
def test_one_hot_is_its_own_winner(label: str) -> None:
    assert winner([int(share) for share in one_hot(label, CLASSES)], CLASSES) == label


@pytest.mark.parametrize("label", ["Happy\ufe0f", "hap\u200bpy", "\U000e0041HAPPY", "happy\u2800"])
def test_invisible_characters_in_a_label_are_ignored(label: str) -> None:
    assert LabelReader()[label] == "happy"


@pytest.mark.parametrize("character", ["\0", "\x07", "\x7f", "\x9d"], ids=ascii)
def test_control_characters_in_a_label_are_named(character: str) -> None:
    assert LabelReader()[f"happy{character}"] is None
    reason = LabelReader().why_rejected(f"happy{character}")
    assert reason.startswith(f"the label has control characters (U+{ord(character):04X})")


@pytest.mark.parametrize("label", ["bo\nred", "bo\r\nred", "bo\u2028red", "\x0bbo \x85 red"])
def test_a_label_with_a_line_break_is_told_in_one_line(label: str) -> None:
    reason = LabelReader().why_rejected(label)
    assert len(reason.splitlines()) == 1
    assert "`bo red`" in reason
    assert LabelReader(corpus={"bo red": "sad"})[label] == "sad"  # what the advice says
