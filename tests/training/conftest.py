"""Fixtures of the training tests."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, make_corpus, make_task

from multistill.models.build import build


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifest and feature store; tests only read them."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def shared_initialisation(corpus, monkeypatch) -> None:
    """Threads share torch's random state, so they must not draw weights at the same time."""
    task = make_task(corpus)
    torch.manual_seed(task.seed)
    model = build(task.spec, AUDIO_DIM, TEXT_DIM)
    monkeypatch.setattr("multistill.training.loop.build_model", lambda *_: copy.deepcopy(model))
