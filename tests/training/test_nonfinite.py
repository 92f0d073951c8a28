"""A loss that is not finite stops the training on all ranks and names the utterance."""

from __future__ import annotations

import json

import pytest
from helpers.training_corpus import ThreadGroup, make_corpus, make_task, run

from multistill.errors import MultistillError


def test_a_non_finite_loss_stops_the_training_and_names_the_utterance(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", broken=21)
    with pytest.raises(MultistillError, match=r"utt-021.*not-finite\.json"):
        run(make_task(corpus), tmp_path / "state")
    report = json.loads((tmp_path / "state" / "not-finite.json").read_text())
    assert report["not_finite"] == ["utt-021"]
    assert "utt-021" in report["utterance_ids"]
    assert len(report["utterance_ids"]) <= 16
    assert report["epoch"] == 1


def test_all_ranks_stop_at_the_same_batch(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", broken=21)
    with pytest.raises(MultistillError, match="utt-021"):
        ThreadGroup(2).fit(make_task(corpus), tmp_path / "state")
    report = json.loads((tmp_path / "state" / "not-finite.json").read_text())
    assert report["not_finite"] == ["utt-021"]
