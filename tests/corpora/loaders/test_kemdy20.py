"""The KEMDy20 loader on generated trees with glitches: every record is as expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.generators import kemdy20
from helpers.generators.parts import differences

from multistill.config import CorpusConfig
from multistill.corpora import loaders


def config(root: Path, **more: object) -> CorpusConfig:
    return CorpusConfig(kind="kemdy20", path=str(root), **more)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_glitch_gives_exactly_the_expected_records(tmp_path: Path, seed: int) -> None:
    truth = kemdy20.make(tmp_path / "KEMDy20", seed=seed)
    assert differences(truth, loaders.load(config(truth.root))) == []
