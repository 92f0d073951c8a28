"""Prepared KEMDy and AI Hub trees with glitches: manifest, rejections, notes and agreement."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.generators import aihub, kemdy19, kemdy20
from helpers.generators.parts import Truth

from multistill.config import CLASSES, CorpusConfig, SplitConfig
from multistill.corpora.agreement import vote_entropy
from multistill.corpora.manifest import NOTES_SCHEMA, read_manifest
from multistill.corpora.prepare import prepare
from multistill.workspace import read_json


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Truth], Path]:
    """Expected records by corpus title, and the folder with the result for all five corpora."""
    root = tmp_path_factory.mktemp("trees")
    truths = {
        "k19": kemdy19.make(root / "KEMDy19"),
        "kemdy20": kemdy20.make(root / "KEMDy20"),
        "aihub-dialogue": aihub.make_dialogue(root / "dialogue"),
        "aihub-scripted": aihub.make_scripted(root / "scripted"),
        "aihub-wellness": aihub.make_wellness(root / "wellness"),
    }
    corpora = [
        CorpusConfig(kind="kemdy19", path=str(truths["k19"].root), name="k19"),
        *(CorpusConfig(kind=kind, path=str(truths[kind].root)) for kind in list(truths)[1:]),
    ]
    out = root / "out"
    out.mkdir()
    prepare(corpora, SplitConfig(), out, unpacked=root)
    return truths, out


def test_the_manifest_has_the_expected_rows(prepared: tuple[dict[str, Truth], Path]) -> None:
    truths, out = prepared
    rows = iter(read_manifest(out).to_pylist())
    for title, truth in truths.items():
        for expected in truth.utterances:
            row = next(rows)
            assert row["utterance_id"] == f"{title}/{expected.utterance_id}"
            assert row["corpus"] == title
            assert row["session"] == f"{title}/{expected.session}"
            assert row["dialogue"] == f"{title}/{expected.dialogue}"
            assert row["speaker"] == f"{title}/{expected.speaker}"
            assert row["audio_path"] == str(expected.audio_path)
            for name in ("turn", "gender", "text", "text_raw"):
                assert row[name] == getattr(expected, name)
            for name in ("valence", "arousal"):
                assert row[name] == pytest.approx(getattr(expected, name))
            assert row["votes"] == (expected.votes and list(expected.votes))
            shares = expected.votes or [int(name == expected.label) for name in CLASSES]
            assert row["label_soft"] == pytest.approx([v / sum(shares) for v in shares])
            leaders = [n for n, v in zip(CLASSES, shares, strict=True) if v == max(shares)]
            assert row["label"] == (leaders[0] if len(leaders) == 1 else expected.label)
    assert next(rows, None) is None


def test_all_other_clips_are_rejected_and_notes_are_counted(
    prepared: tuple[dict[str, Truth], Path],
) -> None:
    truths, out = prepared
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    expected = [
        (f"{title}/{source}", part)
        for title, truth in truths.items()
        for source, part in truth.rejected
    ]
    assert Counter(row["source"] for row in rejected) == Counter(source for source, _ in expected)
    for source, part in expected:
        assert any(part in row["reason"] for row in rejected if row["source"] == source)
    report = read_json(out / "quality.json")
    kinds = Counter(kind for truth in truths.values() for _, kind in truth.notes)
    assert {kind: notes["count"] for kind, notes in report["notes"].items()} == kinds
    assert report["rejected"]["count"] == len(expected)
    assert report["rejected"]["by"] == {"corpus": len(expected)}
    reasons = report["rejected"]["reasons"]
    assert len(reasons) == 20 and list(reasons.values()) == sorted(reasons.values(), reverse=True)
    assert sum(reasons.values()) <= len(expected), "the twenty commonest"
    assert not any(
        source.rsplit("/", 1)[1] in reason for source, _ in expected for reason in reasons
    )


def test_sessions_stay_together_and_agreement_is_reported_per_corpus(
    prepared: tuple[dict[str, Truth], Path],
) -> None:
    truths, out = prepared
    rows = read_manifest(out).to_pandas()
    assert (rows.groupby("session")["split"].nunique() == 1).all()
    assert set(rows["split"]) == {"train", "valid", "test"}
    raters = read_json(out / "quality.json")["raters"]["corpora"]
    voted = {t for t, truth in truths.items() if any(u.votes for u in truth.utterances)}
    assert set(raters) == voted >= {"k19", "kemdy20", "aihub-dialogue"}
    assert all(-1 <= report["krippendorff_alpha"] <= 1 for report in raters.values())


def test_agreement_is_computed_from_answers_not_from_weighted_votes(
    prepared: tuple[dict[str, Truth], Path],
) -> None:
    truths, out = prepared
    report = read_json(out / "quality.json")["raters"]
    ratings = {
        title: [[name for name in u.ratings if name] for u in truth.utterances if any(u.ratings)]
        for title, truth in truths.items()
    }
    for title, corpus in report["corpora"].items():
        answers, compared, agreed = ratings[title], 0, 0
        assert (corpus["utterances"], corpus["answers"]) == (len(answers), sum(map(len, answers)))
        for names in answers:
            for rater, name in enumerate(names):
                others = Counter(names[:rater] + names[rater + 1 :]).most_common(2)
                if others and (len(others) == 1 or others[0][1] > others[1][1]):
                    compared += 1
                    agreed += others[0][0] == name
        ceiling = corpus["leave_one_rater_out"]
        assert ceiling["answers"] == compared
        assert ceiling["accuracy"] == pytest.approx(agreed / compared)
        by_rater = sum(rater["accuracy"] * rater["answers"] for rater in corpus["each"])
        assert by_rater == pytest.approx(agreed)
        by_class = np.array([[names.count(c) for c in CLASSES] for names in answers])
        assert corpus["entropy_bits"]["mean"] == pytest.approx(vote_entropy(by_class).mean())
    assert report["answers"] == sum(corpus["answers"] for corpus in report["corpora"].values())
    dialogue = [u for u in truths["aihub-dialogue"].utterances if u.votes]
    assert report["corpora"]["aihub-dialogue"]["answers"] < sum(sum(u.votes) for u in dialogue)


def test_all_notes_are_written_and_the_report_has_the_first_ten(
    prepared: tuple[dict[str, Truth], Path],
) -> None:
    truths, out = prepared
    table = pq.read_table(out / "notes.parquet")
    assert table.schema.equals(NOTES_SCHEMA)
    notes = table.to_pylist()
    expected = Counter((f"{t}/{source}", kind) for t in truths for source, kind in truths[t].notes)
    assert Counter((note["source"], note["kind"]) for note in notes) == expected
    report = read_json(out / "quality.json")["notes"]
    for kind, reported in report.items():
        texts = [f"{n['source']}: {n['text']}" for n in notes if n["kind"] == kind]
        assert (reported["count"], reported["examples"]) == (len(texts), texts[:10])
