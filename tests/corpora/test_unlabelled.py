"""Corpora without labels: never in test or validation, nor heard there, and never counted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.corpora import write_table
from helpers.generators.parts import write_wav
from helpers.recording_logger import RecordingLogger

from multistill.config import CorpusConfig, ProtocolConfig, SplitConfig, TasksConfig
from multistill.corpora.manifest import UNLABELLED, read_manifest
from multistill.corpora.prepare import prepare
from multistill.errors import MultistillError
from multistill.evaluation.utterances import read_training_statistics
from multistill.pipeline.checkpoints import _trained_on
from multistill.workspace import fold_folder, read_json

LABELLED = [f"{n}.wav,text {n},{('sad', 'happy')[n // 8]},p{n % 8}" for n in range(16)]
SPLIT = SplitConfig(by="speaker")
HEADER = "audio_path,text,speaker"


def corpora(tmp_path: Path, clips: list[str], header: str = HEADER) -> list[CorpusConfig]:
    """A corpus with labels, and one without whose recordings are others."""
    own = write_table(tmp_path / "own", LABELLED)
    wild = write_table(tmp_path / "wild", clips, header)
    for number in range(len(clips)):
        write_wav(wild.parent / f"{number}.wav", 1000 + number)
    return [
        CorpusConfig(kind="table", path=str(own), name="own"),
        CorpusConfig(kind="table", path=str(wild), name="wild", unlabelled=True),
    ]


def prepared(tmp_path: Path, found: list[CorpusConfig], **more: Any) -> tuple[Path, dict[str, Any]]:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out, prepare(found, more.pop("split", SPLIT), out, unpacked=tmp_path, **more)


def by_part(folder: Path) -> dict[str, list[dict[str, Any]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in read_manifest(folder).to_pylist():
        parts.setdefault(row["split"], []).append(row)
    return parts


def rejected(out: Path) -> dict[str, str]:
    return dict(zip(*pq.read_table(out / "rejected.parquet").to_pydict().values(), strict=True))


def test_they_change_no_other_part_and_have_one_of_their_own(tmp_path: Path) -> None:
    found = corpora(tmp_path, [f"{n}.wav,said {n},q{n}" for n in range(12)])
    alone, before = prepared(tmp_path, found[:1])
    expected, quality = by_part(alone), read_json(alone / "quality.json")
    out, summary = prepared(tmp_path, found)
    parts = by_part(out)
    unlabelled = parts.pop(UNLABELLED)
    assert parts == expected
    assert {row["corpus"] for row in unlabelled} == {"wild"} and len(unlabelled) == 12
    for row in unlabelled:
        assert row["fold"] == -1 and row["label"] is None and row["votes"] is None
        assert not any(row["label_soft"])
    assert summary["splits"] == {**before["splits"], UNLABELLED: 12}
    assert summary["content"] != before["content"]  # they are encoded too
    ours = read_json(out / "quality.json")
    assert (ours["split"], ours["balance"]) == (quality["split"], quality["balance"])
    assert ours["unlabelled"]["wild"]["clips"] == 12


@pytest.mark.parametrize("column", ["speaker", "session"])
def test_nobody_of_validation_or_test_is_heard_in_them(tmp_path: Path, column: str) -> None:
    """Planted leaks: one clip of every labelled speaker, under the name of the other corpus."""
    clips = [f"{n}.wav,said {n},p{n}" for n in range(8)]
    found = corpora(tmp_path, clips, f"audio_path,text,{column}")
    out, summary = prepared(tmp_path, found)
    parts = by_part(out)
    trained = {row["speaker"].split("/")[1] for row in parts["train"]}
    held_out = {f"p{n}" for n in range(8)} - trained
    assert held_out and trained
    assert {row["session"].split("/")[1] for row in parts[UNLABELLED]} == trained
    reasons = rejected(out)
    assert len(reasons) == len(held_out) == summary["unlabelled"]["wild"]["left_out"]
    assert all("is in validation or test" in reason for reason in reasons.values())


def test_a_split_that_is_allowed_to_leak_keeps_them(tmp_path: Path) -> None:
    found = corpora(tmp_path, [f"{n}.wav,said {n},p{n}" for n in range(8)])
    out, _ = prepared(tmp_path, found, split=SplitConfig(by="random", allow_leak=True, valid=0.2))
    assert len(by_part(out)[UNLABELLED]) == 8


def test_every_fold_leaves_out_those_whom_it_tests_or_validates_on(tmp_path: Path) -> None:
    clips = [f"{n}.wav,said {n},{who}" for n, who in enumerate([f"p{n}" for n in range(8)] + ["q"])]
    out, summary = prepared(
        tmp_path, corpora(tmp_path, clips), protocol=ProtocolConfig(kind="leave-one-out")
    )
    assert len(by_part(out)[UNLABELLED]) == 9  # all are encoded
    assert len(summary["folds"]) == 8
    for number, fold in enumerate(summary["folds"]):
        parts = by_part(fold_folder(out, number))
        named = {
            part: {row["speaker"].split("/")[1] for row in rows} for part, rows in parts.items()
        }
        assert named[UNLABELLED] == named["train"] | {"q"}
        assert fold["splits"][UNLABELLED] == len(parts[UNLABELLED])


def test_a_recording_that_a_corpus_with_labels_has_is_dropped_in_every_part(tmp_path: Path) -> None:
    """Planted leak: the labelled recordings themselves, under other names and speakers."""
    found = corpora(tmp_path, [f"{n}.wav,said {n},q{n}" for n in range(18)])
    for number in range(16):
        shutil.copy(tmp_path / "own" / f"{number}.wav", tmp_path / "wild" / f"{number}.wav")
    out, _ = prepared(tmp_path, found)
    assert [row["utterance_id"] for row in by_part(out)[UNLABELLED]] == ["wild/16", "wild/17"]
    assert list(rejected(out).values()) == ["a corpus with labels has its recording"] * 16
    for number in (16, 17):
        shutil.copy(tmp_path / "own" / f"{number - 16}.wav", tmp_path / "wild" / f"{number}.wav")
    with pytest.raises(MultistillError, match="`wild`: none of its clips is left"):
        prepared(tmp_path, found)


def test_labels_are_not_read_whatever_they_say_and_this_is_said(tmp_path: Path) -> None:
    rows = [
        f"{n}.wav,said {n},q{n},{label},9" for n, label in enumerate(["sad", "bored", "a;b", ""])
    ]
    found = corpora(tmp_path, rows, "audio_path,text,speaker,label,valence")
    logger = RecordingLogger()
    tasks = TasksConfig(classes=1.0, valence=1.0)
    own = tmp_path / "own" / "t.csv"
    text = own.read_text().splitlines()
    own.write_text(
        "\n".join([f"{text[0]},valence", *(f"{r},{n % 5 + 1}" for n, r in enumerate(text[1:]))])
    )
    out, summary = prepared(tmp_path, found, logger=logger, tasks=tasks)
    unlabelled = by_part(out)[UNLABELLED]
    assert len(unlabelled) == 4 and all(row["valence"] is None for row in unlabelled)
    assert summary["unlabelled"]["wild"]["with_label"] == 3
    assert any("3 clips have a label, which is not read" in text for text in logger.messages)


def test_a_table_of_recordings_alone_is_enough(tmp_path: Path) -> None:
    found = corpora(tmp_path, [f"{n}.wav" for n in range(3)], "audio_path")
    logger = RecordingLogger()
    out, summary = prepared(tmp_path, found, logger=logger)
    assert len({row["group"] for row in by_part(out)[UNLABELLED]}) == 3
    assert summary["unlabelled"]["wild"]["unnamed"] == 3
    assert any("3 clips name no speaker" in text for text in logger.messages)


def test_what_students_have_heard_is_known_to_the_evaluation(tmp_path: Path) -> None:
    found = corpora(tmp_path, ["0.wav,text 3,q", "1.wav,nobody else says this,q"])
    out, summary = prepared(tmp_path, found)
    training = read_training_statistics(out)
    assert "nobody else says this" in training.texts
    assert training.counts.sum() == len(by_part(out)["train"])
    assert {"wild/0", "wild/1"} <= _trained_on(out)
    tested = {row["text"] for row in by_part(out)["test"]}
    assert summary["unlabelled"]["wild"]["transcripts"] == ("text 3" in tested)


def test_any_corpus_can_be_without_labels(tmp_path: Path) -> None:
    """Boredom is no class of the job, and a reason to reject a clip of a corpus with labels."""
    folder = tmp_path / "emodb" / "wav"
    folder.mkdir(parents=True)
    for number, name in enumerate(("03a01Wa", "08a01La")):
        write_wav(folder / f"{name}.wav", 2000 + number)
    own = corpora(tmp_path, ["0.wav,x,q"])[0]
    wild = CorpusConfig(kind="emodb", path=str(folder.parent), unlabelled=True)
    out, _ = prepared(tmp_path, [own, wild])
    assert len(by_part(out)[UNLABELLED]) == 2
