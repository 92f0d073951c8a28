"""Generated KEMDy corpora of full size give the published counts."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers.generators import full
from helpers.generators.parts import Truth, differences

from multistill.config import CLASSES, CorpusConfig
from multistill.corpora import loaders
from multistill.corpora.labels import winner
from multistill.corpora.records import Record, Rejected, Utterance


@pytest.fixture(scope="module")
def kemdy19(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, list[Record]]:
    truth = full.make_kemdy19(tmp_path_factory.mktemp("full") / "KEMDy19")
    config = CorpusConfig(kind="kemdy19", path=str(truth.root))
    return truth, list(loaders.load(config))


@pytest.fixture(scope="module")
def kemdy20(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, list[Record]]:
    truth = full.make_kemdy20(tmp_path_factory.mktemp("full") / "KEMDy20")
    config = CorpusConfig(kind="kemdy20", path=str(truth.root))
    return truth, list(loaders.load(config))


def labels(records: list[Record]) -> list[tuple[Utterance, str | None]]:
    kept = [record for record in records if isinstance(record, Utterance)]
    return [(item, winner(item.votes, CLASSES)) for item in kept if item.votes is not None]


def test_kemdy19_records_are_as_expected(kemdy19: tuple[Truth, list[Record]]) -> None:
    truth, records = kemdy19
    assert differences(truth, records) == []


def test_kemdy19_counts_are_the_published_ones(kemdy19: tuple[Truth, list[Record]]) -> None:
    _, records = kemdy19
    rows = labels(records)
    single = [(item, label) for item, label in rows if label is not None]
    assert len(single) == 9627
    assert Counter(label for _, label in single) == full.KEMDY19_SINGLE
    assert Counter("script" in item.dialogue for item, _ in single) == {True: 5451, False: 4176}
    assert Counter(item.gender for item, _ in single) == {"M": 4914, "F": 4713}
    assert len({item.session for item, _ in rows}) == 20
    assert len({item.speaker for item, _ in rows}) == 40
    # 10,279 segments have a speaker's row; two of them have no recording, and eight more ids
    # are in listeners' tables only.
    assert len(rows) == 10279 - 2
    rejected = [r.reason for r in records if isinstance(r, Rejected)]
    assert sum("only in the listener's table" in reason for reason in rejected) == 8
    assert sum("no wav and no txt" in reason for reason in rejected) == 2
    assert len(rejected) == 10


def test_kemdy20_records_are_as_expected(kemdy20: tuple[Truth, list[Record]]) -> None:
    truth, records = kemdy20
    assert differences(truth, records) == []


def test_kemdy20_counts_are_the_published_ones(kemdy20: tuple[Truth, list[Record]]) -> None:
    _, records = kemdy20
    rows = labels(records)
    assert len(rows) == 13462
    single = Counter(label for _, label in rows if label is not None)
    assert sum(single.values()) == 12828
    assert single["disgust"] + single["fear"] == 104
    shares = {name: single[name] / 12724 for name in full.KEMDY20_SHARES}
    assert shares == pytest.approx(full.KEMDY20_SHARES, abs=1.1e-3)
    assert len({item.session for item, _ in rows}) == 40
    assert len({item.speaker for item, _ in rows}) == 80
    assert not any(item.utterance_id.startswith("Sess42") for item, _ in rows)
