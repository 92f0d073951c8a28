"""Cross-validation: every clip is tested once, and nothing of its group is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.corpora import write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import CLASSES, CorpusConfig, ProtocolConfig, SplitConfig
from multistill.corpora.cross_validation import MAX_FOLDS, leaks_of_folds, split_folds
from multistill.corpora.manifest import read_manifest, with_classes
from multistill.corpora.prepare import prepare
from multistill.corpora.split import PARTS, assign_folds
from multistill.errors import UsageError
from multistill.workspace import fold_folder


def rows(groups: list[tuple[str, str, str]], labels: int = 3) -> pa.Table:
    """Clips of (corpus, session, speaker); every group has all of `labels` classes."""
    clips = [(*group, label) for group in groups for label in range(labels)]
    shares = np.eye(7, dtype=np.float32)[[clip[3] for clip in clips]]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(shares.reshape(-1)), 7)
    return pa.table(
        {
            "utterance_id": [f"u{n}" for n in range(len(clips))],
            "corpus": [clip[0] for clip in clips],
            "session": [clip[1] for clip in clips],
            "speaker": [clip[2] for clip in clips],
            "text": [f"text {n}" for n in range(len(clips))],
            "audio_digest": [f"d{n}" for n in range(len(clips))],
            "label": [CLASSES[clip[3]] for clip in clips],
            "label_soft": flat,
        },
        metadata=with_classes(CLASSES),
    )


def pairs(count: int) -> list[tuple[str, str, str]]:
    """Sessions of two speakers each."""
    return [("c", f"s{n}", f"p{n}{who}") for n in range(count) for who in "ab"]


protocols = st.builds(
    ProtocolConfig,
    kind=st.sampled_from(["k-fold", "leave-one-out"]),
    by=st.sampled_from(["speaker", "session"]),
    folds=st.integers(2, 6),
)


@settings(deadline=None)
@given(protocols, st.integers(6, 14), st.integers(0, 10**6), st.floats(0, 0.4))
def test_every_clip_is_tested_once_and_its_group_is_nowhere_else(
    protocol: ProtocolConfig, sessions: int, seed: int, valid: float
) -> None:
    table = rows(pairs(sessions))
    whole, folds = split_folds(table, protocol, SplitConfig(seed=seed, valid=valid))
    part = np.stack([fold.part for fold in folds])
    assert ((part == 2).sum(axis=0) == 1).all()
    assert (whole.fold == (part == 2).argmax(axis=0)).all()
    for column in ("session", "speaker"):
        names = np.array(table[column].to_pylist())
        for fold in folds:
            for name in set(names):
                assert len(set(fold.part[names == name])) == 1
    for fold in folds:
        assert (fold.part == 0).any()
        assert (fold.part == 1).any() == (valid > 0)
        inner = fold.fold[fold.part == 0]
        assert (inner >= 0).all() and (fold.fold[fold.part == 2] == -1).all()
        # The teacher's folds are those that a holdout of the same parts would have.
        part_of = dict(
            zip(table["session"].to_pylist(), [PARTS[p] for p in fold.part], strict=True)
        )
        names = [fold.groups.names[code] for code in fold.groups.codes]
        of_group = {n: part_of[s] for n, s in zip(names, table["session"].to_pylist(), strict=True)}
        expected_folds = assign_folds(of_group, 5, seed)
        assert [expected_folds.get(name, -1) for name in names] == fold.fold.tolist()
    expected = protocol.folds if protocol.kind == "k-fold" else sessions
    assert len(folds) == expected
    sizes = (part == 2).sum(axis=1) / 6
    assert sizes.max() - sizes.min() <= 1
    if len(folds) > 3 and valid <= 0.25:  # nobody is validated on in every other fold
        assert ((part == 0).any(axis=0)).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=12, max_size=24), st.integers(0, 99))
def test_transcripts_are_counted_as_set_by_set(texts: list[int], seed: int) -> None:
    """Against a count by Python's sets, an empty transcript being none; they are not refused."""
    table = rows(pairs(6), labels=len(texts) // 12)
    texts = texts[: len(table)]
    names = [f"Text {n}" if n else "" for n in texts]
    table = table.set_column(table.column_names.index("text"), "text", pa.array(names))
    protocol, split = ProtocolConfig(kind="leave-one-out"), SplitConfig(seed=seed)
    _, folds = split_folds(table, protocol, split)
    found = leaks_of_folds(table, protocol, split, folds)
    both = [
        {texts[i] for i in np.flatnonzero(fold.part == 2)}
        & {texts[i] for i in np.flatnonzero(fold.part != 2)} - {0}
        for fold in folds
    ]
    assert found["transcripts"] == sum(map(len, both))
    concerned = [
        i
        for fold, shared in zip(folds, both, strict=True)
        for i in np.flatnonzero(fold.part == 2)
        if texts[i] in shared
    ]
    assert found["transcript_rows"] == len(concerned)
    assert found["sessions"] == found["speakers"] == found["recordings"] == 0


def test_corpora_are_left_out_whole() -> None:
    groups = [(f"c{n % 3}", f"s{n}", f"p{n}") for n in range(12)]
    table = rows(groups)
    protocol = ProtocolConfig(kind="leave-one-out", by="corpus")
    _, folds = split_folds(table, protocol, SplitConfig())
    corpora = np.array(table["corpus"].to_pylist())
    assert [set(corpora[fold.part == 2]) for fold in folds] == [{"c0"}, {"c1"}, {"c2"}]
    assert [fold.facts["name"] for fold in folds] == ["c0", "c1", "c2"]
    assert all({0, 1} <= set(fold.part[corpora != fold.facts["name"]]) for fold in folds)


def test_repetitions_are_other_drawings_of_the_folds() -> None:
    table = rows(pairs(12))
    once = ProtocolConfig(kind="k-fold", folds=4, by="session")
    protocol = once.model_copy(update={"repeats": 3})
    whole, folds = split_folds(table, protocol, SplitConfig(seed=7))
    assert [fold.facts["name"] for fold in folds] == [
        f"{repetition}.{fold}" for repetition in (1, 2, 3) for fold in (1, 2, 3, 4)
    ]
    drawn = []
    for repetition in range(3):
        own = folds[4 * repetition : 4 * repetition + 4]
        assert {fold.facts["repetition"] for fold in own} == {repetition}
        _, alone = split_folds(table, once, SplitConfig(seed=7 + repetition))
        assert all((a.part == b.part).all() for a, b in zip(own, alone, strict=True))
        tested = np.stack([fold.part == 2 for fold in own])
        assert (tested.sum(axis=0) == 1).all()
        drawn.append(tested.argmax(axis=0))
    assert (whole.fold == drawn[0]).all()
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()
    single = split_folds(table, once, SplitConfig(seed=7))[1]
    assert leaks_of_folds(table, protocol, SplitConfig(), folds) == leaks_of_folds(
        table, once, SplitConfig(), single
    )


def test_assignment_depends_on_the_seed_of_the_split_only() -> None:
    table, protocol = rows(pairs(10)), ProtocolConfig(kind="k-fold", folds=5)
    first, again, other = (
        split_folds(table, protocol, SplitConfig(seed=seed))[0].fold for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize(
    ("protocol", "sessions", "problem"),
    [
        ({"kind": "k-fold", "folds": 5, "by": "session"}, 4, "needs at least 5 groups"),
        ({"kind": "leave-one-out"}, 2, "needs at least 3 groups, and there are 2"),
        ({"kind": "leave-one-out", "by": "corpus"}, 9, "needs at least 2 groups"),
        ({"kind": "leave-one-out"}, MAX_FOLDS + 1, "would be 101 folds"),
    ],
)
def test_too_few_or_too_many_groups(protocol: dict[str, Any], sessions: int, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        split_folds(rows(pairs(sessions)), ProtocolConfig(**protocol), SplitConfig())


def test_a_class_that_one_group_alone_has_cannot_be_tested() -> None:
    table = rows(pairs(6), labels=2)
    labels = table["label"].to_pylist()
    labels[0] = "fear"
    table = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
    with pytest.raises(UsageError, match="no training clip of fear; merge these classes"):
        split_folds(table, ProtocolConfig(kind="leave-one-out"), SplitConfig())


def corpus(folder: Path) -> CorpusConfig:
    lines = [
        f"{n}.wav,text {n},{label},p{speaker}"
        for n, (speaker, label) in enumerate(
            (speaker, label) for speaker in range(6) for label in ("happy", "sad", "happy")
        )
    ]
    return CorpusConfig(kind="table", path=str(write_table(folder, lines)))


def test_manifests_of_all_folds_are_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    protocol = ProtocolConfig(kind="leave-one-out")
    split = SplitConfig(max_per_class={"happy": 3})
    summary = prepare([corpus(tmp_path / "c")], split, out, protocol=protocol, unpacked=tmp_path)
    whole = read_manifest(out)
    assert set(whole["split"].to_pylist()) == {"test"} and len(whole) == 18
    assert [fold["name"] for fold in summary["folds"]] == [f"table/p{n}" for n in range(6)]
    tested: list[str] = []
    for number, fold in enumerate(summary["folds"]):
        rows = read_manifest(fold_folder(out, number)).to_pandas()
        assert rows["split"].value_counts().to_dict() == fold["splits"]
        test = rows[rows["split"] == "test"]
        assert set(test["speaker"]) == {fold["name"]} == {*fold["test"]}
        tested += test["utterance_id"].tolist()
        happy = rows[(rows["split"] == "train") & (rows["label"] == "happy")]
        assert len(happy) == 3, "caps are of the training part of each fold"
    assert sorted(tested) == sorted(whole["utterance_id"].to_pylist())


def test_a_speaker_in_sessions_of_two_folds_is_refused(tmp_path: Path) -> None:
    rows = [f"{n}.wav,t{n},{'sad' if n % 2 else 'happy'},p,s{n // 4}" for n in range(24)]
    header = "audio_path,text,label,speaker,session"
    config = CorpusConfig(kind="table", path=str(write_table(tmp_path / "c", rows, header)))
    protocol = ProtocolConfig(kind="k-fold", by="session", folds=3)
    with pytest.raises(UsageError, match=r"protocol\.by: session puts 1 speakers into several"):
        prepare([config], SplitConfig(), tmp_path, protocol=protocol, unpacked=tmp_path)
