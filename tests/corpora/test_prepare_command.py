"""`multistill run JOB --until prepare` on corpora with all glitches gives the expected files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from helpers.generators import aihub, kemdy19, kemdy20, table
from helpers.generators.parts import CLASSES, Truth

from multistill.cli import main
from multistill.corpora.records import Utterance


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Truth]:
    root = tmp_path_factory.mktemp("corpora")
    return {
        "kemdy19": kemdy19.make(root / "19" / "KEMDy19"),
        "kemdy20": kemdy20.make(root / "20" / "KEMDy20"),
        "aihub-dialogue": aihub.make_dialogue(
            root / "hub1" / "감정 분류를 위한 대화 음성 데이터셋"
        ),
        "aihub-scripted": aihub.make_scripted(root / "hub2" / "감정분류용 데이터셋"),
        "aihub-wellness": aihub.make_wellness(root / "hub3" / "감성대화 말뭉치"),
        "table": table.make(root / "own" / "corpus"),
    }


@pytest.fixture(scope="module")
def prepared(
    truths: Mapping[str, Truth], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], list[tuple[str, str]], dict[str, Any]]:
    """Rows of the manifest, rejections as (source, reason), and the quality report."""
    folder = tmp_path_factory.mktemp("run")
    job = {
        "name": "glitches",
        "workspace": str(folder / "workspace"),
        "corpora": [
            {"kind": kind, "path": str(truth.root), "name": f"my {kind}"}
            for kind, truth in truths.items()
        ],
        "split": {"by": "speaker", "test": 0.3, "folds": 2},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job, allow_unicode=True), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_info:
        main(["run", str(folder / "job.yaml"), "--until", "prepare"])
    assert exit_info.value.code == 0
    (artifact,) = {path.parent for path in (folder / "workspace").rglob("manifest.parquet")}
    rejected = pq.read_table(artifact / "rejected.parquet").to_pylist()
    return (
        pq.read_table(artifact / "manifest.parquet").to_pylist(),
        [(row["source"], row["reason"]) for row in rejected],
        json.loads((artifact / "quality.json").read_text()),
    )


def row_of(title: str, item: Utterance) -> dict[str, Any]:
    """The manifest row of an expected utterance."""
    if item.votes is not None:
        total, most = sum(item.votes), max(item.votes)
        soft = [vote / total for vote in item.votes]
        leaders = [name for name, vote in zip(CLASSES, item.votes, strict=True) if vote == most]
        label = leaders[0] if len(leaders) == 1 else None
    else:
        soft = [float(name == item.label) for name in CLASSES]
        label = item.label
    return {
        "utterance_id": f"{title}/{item.utterance_id}",
        "corpus": title,
        "session": f"{title}/{item.session}",
        "dialogue": f"{title}/{item.dialogue}",
        "turn": item.turn,
        "speaker": f"{title}/{item.speaker}",
        "gender": item.gender,
        "age": item.age,
        "style": item.style,
        "audio_path": str(item.audio_path),
        "num_samples": 640,
        "sample_rate": 16000,
        "duration_s": pytest.approx(0.04),
        "text": item.text,
        "text_raw": item.text_raw,
        "votes": None if item.votes is None else list(item.votes),
        "label": label,
        "label_soft": pytest.approx(soft, abs=1e-6),
        "valence": None if item.valence is None else pytest.approx(item.valence, abs=1e-6),
        "arousal": None if item.arousal is None else pytest.approx(item.arousal, abs=1e-6),
    }


def test_the_manifest_has_the_expected_rows(
    truths: Mapping[str, Truth],
    prepared: tuple[list[dict[str, Any]], list[tuple[str, str]], dict[str, Any]],
) -> None:
    rows, _, _ = prepared
    expected = [
        row_of(f"my {kind}", item) for kind, truth in truths.items() for item in truth.utterances
    ]
    assert [row["utterance_id"] for row in rows] == [row["utterance_id"] for row in expected]
    for row, expected_row in zip(rows, expected, strict=True):
        assert {name: row[name] for name in expected_row} == expected_row


def test_the_rejections_are_exactly_the_expected_ones(
    truths: Mapping[str, Truth],
    prepared: tuple[list[dict[str, Any]], list[tuple[str, str]], dict[str, Any]],
) -> None:
    _, rejected, _ = prepared
    remaining = list(rejected)
    for kind, truth in truths.items():
        for source, part in truth.rejected:
            matches = [r for r in remaining if r[0] == f"my {kind}/{source}" and part in r[1]]
            assert matches, f"{kind}: {source} should be rejected for {part!r}"
            remaining.remove(matches[0])
    assert remaining == []


def test_the_quality_report_counts_every_note(
    truths: Mapping[str, Truth],
    prepared: tuple[list[dict[str, Any]], list[tuple[str, str]], dict[str, Any]],
) -> None:
    _, _, quality = prepared
    expected = Counter(kind for truth in truths.values() for _, kind in truth.notes)
    assert {kind: notes["count"] for kind, notes in quality["notes"].items()} == expected
