"""Micro-batches are read ahead of the computation."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from helpers.training_corpus import make_task

from multistill.features import collate as module
from multistill.features.collate import collate
from multistill.training.data import TrainingData
from multistill.training.prefetch import Prefetcher


def test_the_disk_reads_later_micro_batches_while_one_is_computed(
    corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData.open(make_task(corpus))
    groups = np.array_split(np.random.default_rng(0).permutation(len(data.train)), 24)
    plain = [collate(data.store, list(data.train.ids.take(group))) for group in groups]
    asked: list[int] = []
    monkeypatch.setattr(module, "will_need", lambda values: asked.append(values.nbytes))
    reader = Prefetcher(data.store, torch.device("cpu"), None)
    sizes = 2 * np.cumsum([len(group) for group in groups])
    read = 0
    for number, micro_batch in enumerate(reader.micro_batches(data.train, groups)):
        deadline = time.monotonic() + 60
        while len(asked) < sizes[min(number + 8, 23)]:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert len(asked) == sizes[min(number + 8, 23)]
        assert micro_batch.rows == groups[number].tolist()
        assert torch.equal(micro_batch.states.audio, plain[number].audio)
        assert torch.equal(micro_batch.states.text_mask, plain[number].text_mask)
        read += 1
    assert read == 24
