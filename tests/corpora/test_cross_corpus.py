"""`protocol: cross-corpus`: a fold per corpus trains on it alone and tests all of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import write_table

from multistill.config import CorpusConfig, LabelsConfig, ProtocolConfig, SplitConfig
from multistill.corpora.manifest import read_manifest
from multistill.corpora.prepare import prepare
from multistill.errors import UsageError
from multistill.workspace import fold_folder

CROSS = ProtocolConfig.model_validate("cross-corpus")
SPLIT = SplitConfig(by="speaker", test=0.3, valid=0.2, folds=2)
LABELS = LabelsConfig(classes=["neutral", "angry"])


def corpus(folder: Path, name: str, speakers: int, label: str | None = None) -> CorpusConfig:
    """Two clips per speaker, one of each class or both of `label`."""
    clips = [(number, kind) for number in range(speakers) for kind in ("neutral", "angry")]
    rows = [
        f"{row}.wav,{name} {row},{label or kind},p{number}"
        for row, (number, kind) in enumerate(clips)
    ]
    return CorpusConfig(kind="table", name=name, path=str(write_table(folder / name, rows)))


def test_every_corpus_trains_one_fold_and_all_of_the_others_is_tested(tmp_path: Path) -> None:
    corpora = [corpus(tmp_path, name, size) for name, size in (("b", 6), ("a", 9), ("c", 5))]
    out = tmp_path / "out"
    out.mkdir()
    summary = prepare(corpora, SPLIT, out, unpacked=tmp_path, labels=LABELS, protocol=CROSS)
    assert [fold["trained_on"] for fold in summary["folds"]] == ["a", "b", "c"]
    whole = read_manifest(out).to_pandas().set_index("utterance_id")
    for number, name in enumerate("abc"):
        rows = read_manifest(fold_folder(out, number)).to_pandas().set_index("utterance_id")
        assert len(rows) == len(whole)
        own = rows["corpus"] == name
        assert set(rows[~own]["split"]) == {"test"} and set(rows[~own]["fold"]) == {-1}
        assert set(rows[own]["split"]) == {"train", "valid", "test"}
        speakers = rows[own].groupby("speaker")["split"].nunique()
        assert (speakers == 1).all(), "the diagonal is of speakers that nobody heard"
        assert (rows[own]["split"] == whole.loc[rows[own].index, "split"]).all()
        assert set(rows[own & (rows["split"] != "test")]["fold"]) == {0, 1}
    assert not summary["leaks"]["speakers"]
    again = read_manifest(out).to_pandas()["fold"]
    assert np.array_equal(np.unique(again), [-1, 0, 1])


def test_what_cannot_be_crossed_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def build(*corpora: CorpusConfig) -> None:
        prepare(list(corpora), SPLIT, out, unpacked=tmp_path, labels=LABELS, protocol=CROSS)

    with pytest.raises(UsageError, match=r"the corpus `b`: split\.by: speaker: test"):
        build(corpus(tmp_path, "a", 6), corpus(tmp_path, "b", 2))
    with pytest.raises(UsageError, match=r"fold 2 \(trained on d\) has no training clip of angry"):
        build(corpus(tmp_path, "c", 6), corpus(tmp_path, "d", 6, "neutral"))
