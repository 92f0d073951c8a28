"""Previous turns of a dialogue: which rows they are, and the tensors made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoder_states import AUDIO_DIM, TEXT_DIM, make_store
from hypothesis import given
from hypothesis import strategies as st

from multistill.features.store import FeatureStore
from multistill.models.build import build
from multistill.models.context import DialogueContext, mean_states, previous_turns
from multistill.models.presets import resolve


def test_previous_turns_are_the_nearest_of_the_same_dialogue() -> None:
    dialogues = ["a", "b", "a", "a", "b", "a"]
    turns = [1, 7, 3, 2, 3, 3]
    expected = [[-1, -1], [4, -1], [3, 0], [0, -1], [-1, -1], [2, 3]]
    assert previous_turns(dialogues, turns, 2).tolist() == expected
    assert previous_turns(dialogues, turns, 0).shape == (6, 0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=20), st.integers(1, 4)
)
def test_previous_turns_exclude_later_turns_and_other_dialogues(
    rows: list[tuple[str, int]], count: int
) -> None:
    table = previous_turns([d for d, _ in rows], [t for _, t in rows], count)
    for row, previous in enumerate(table):
        valid = [int(p) for p in previous if p >= 0]
        assert len(set(valid)) == len(valid)
        assert row not in valid
        assert all(rows[p][0] == rows[row][0] and rows[p][1] <= rows[row][1] for p in valid)
        before = sum(
            (d, t, i) < (*rows[row], row) for i, (d, t) in enumerate(rows) if d == rows[row][0]
        )
        assert len(valid) == min(count, before)
        # Nearest first, and missing turns only at the end.
        assert [rows[p][1] for p in valid] == sorted((rows[p][1] for p in valid), reverse=True)
        assert (previous[len(valid) :] == -1).all()


def test_context_is_the_mean_text_then_the_mean_audio_of_each_turn(tmp_path: Path) -> None:
    store = make_store(tmp_path, [(4, 2), (6, 0), (3, 5)])
    columns = {
        # In the manifest but not in the store: a turn whose states are unknown.
        "utterance_id": ["u0", "u1", "quarantined", "u2"],
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


def test_the_states_of_turns_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, [(4, 2), (6, 0)])
    expected = store.audio("u1").mean(axis=0)
    monkeypatch.delattr(FeatureStore, "_read")  # one at a time
    found = mean_states(store, ["u1", "quarantined"])
    np.testing.assert_allclose(found[0, TEXT_DIM:], expected, rtol=1e-6)
    assert not found[1].any()


def test_previous_turns_are_read_in_the_layer_that_the_model_reads() -> None:
    """Of two stored layers of each encoder, the other one changes nothing."""
    layers = {"speech_layers": [3, 9], "speech_layer": 3, "text_layers": [1, 2], "text_layer": 2}
    small = {"width": 16, "heads": 2, "layers": 1, "feedforward": 16, "classifier": 16}
    # The linear path reads no context, and beside it the last layer of the deep one starts at zero.
    small |= {"paths": "deep", "context_turns": 2}
    torch.manual_seed(0)
    model = build(resolve("small-student", {**small, **layers}), 8, 6).eval()
    audio, text = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    context = torch.randn(2, 2, 6 + 8)

    def logits(changed: slice) -> torch.Tensor:
        other = context.clone()
        other[:, :, changed] += 5.0
        return model(audio, None, text, None, other).logits

    same = logits(slice(0, 0))
    for text_or_audio_that_is_not_read in (slice(0, 3), slice(6 + 4, 6 + 8)):
        torch.testing.assert_close(logits(text_or_audio_that_is_not_read), same)
    for that_is_read in (slice(3, 6), slice(6, 6 + 4)):
        assert (logits(that_is_read) - same).abs().max() > 1e-3
