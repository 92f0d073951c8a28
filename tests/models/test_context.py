"""Previous turns: which they are, and what is read of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.models_store import AUDIO_DIM, TEXT_DIM, make_store
from hypothesis import given
from hypothesis import strategies as st

from multistill.models.context import DialogueContext, mean_states, previous_turns


def test_previous_turns_are_the_nearest_of_the_same_dialogue() -> None:
    dialogues = ["a", "b", "a", "a", "b", "a"]
    turns = [1, 7, 3, 2, 3, 3]
    found = previous_turns(dialogues, turns, 2)
    expected = [[-1, -1], [4, -1], [3, 0], [0, -1], [-1, -1], [2, 3]]
    assert found.tolist() == expected
    assert previous_turns(dialogues, turns, 0).shape == (6, 0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=20), st.integers(1, 4)
)
def test_the_past_never_holds_the_future_or_another_dialogue(
    rows: list[tuple[str, int]], count: int
) -> None:
    found = previous_turns([d for d, _ in rows], [t for _, t in rows], count)
    for row, earlier in enumerate(found):
        real = [int(e) for e in earlier if e >= 0]
        assert len(set(real)) == len(real)
        assert row not in real
        assert all(rows[e][0] == rows[row][0] and rows[e][1] <= rows[row][1] for e in real)
        before = sum(
            (d, t, i) < (*rows[row], row) for i, (d, t) in enumerate(rows) if d == rows[row][0]
        )
        assert len(real) == min(count, before)
        # Nearest first, and gaps only at the end.
        assert [rows[e][1] for e in real] == sorted((rows[e][1] for e in real), reverse=True)
        assert (earlier[len(real) :] == -1).all()


def test_context_rows_are_mean_text_then_mean_audio(tmp_path: Path) -> None:
    store = make_store(tmp_path, [(4, 2), (6, 0), (3, 5)])
    columns = {
        # `gone` is in the manifest but was quarantined: a turn of which nothing is known.
        "utterance_id": ["u0", "u1", "gone", "u2"],
        "dialogue": ["d", "d", "d", "d"],
        "turn": [1, 2, 3, 4],
    }
    values, mask = DialogueContext(store, columns, 3).batch(["u2", "u0"])
    assert values.shape == (2, 3, TEXT_DIM + AUDIO_DIM)
    assert mask.tolist() == [[True, True, True], [False, False, False]]
    assert not values[1].any()
    assert not values[0, 0].any()
    np.testing.assert_allclose(values[0, 1, TEXT_DIM:], store.audio("u1").mean(axis=0), rtol=1e-6)
    assert not values[0, 1, :TEXT_DIM].any()
    np.testing.assert_allclose(values[0, 2, :TEXT_DIM], store.text("u0").mean(axis=0), rtol=1e-6)
    assert mean_states(store, []).shape == (0, TEXT_DIM + AUDIO_DIM)
