"""The three AI Hub loaders on generated trees: every record is as expected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.corpora import load
from helpers.generators import aihub
from helpers.generators.parts import differences

from multistill.config import CLASSES, CorpusConfig, CorpusKind
from multistill.corpora import loaders
from multistill.corpora.labels import winner
from multistill.corpora.records import Rejected, Utterance
from multistill.errors import UsageError


def config(kind: CorpusKind, root: Path, **more: object) -> CorpusConfig:
    return CorpusConfig(kind=kind, path=str(root), **more)


@pytest.mark.parametrize("seed", [0, 1])
def test_dialogue_gives_exactly_the_expected_records(tmp_path: Path, seed: int) -> None:
    truth = aihub.make_dialogue(tmp_path / "감정 분류를 위한 대화 음성 데이터셋", seed=seed)
    assert len(truth.utterances) > 40 and len(truth.rejected) == 18
    assert differences(truth, loaders.load(config("aihub-dialogue", truth.root))) == []


def test_dialogue_reads_the_existing_tables(tmp_path: Path) -> None:
    truth = aihub.make_dialogue(tmp_path / "hub", years=("5차년도_2차",))
    assert differences(truth, loaders.load(config("aihub-dialogue", truth.root))) == []


def test_the_weight_of_a_dialogue_vote_is_its_intensity_plus_one(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    aihub.make_dialogue(root, rows_per_table=1, years=("4차년도",))
    header = (root / "4차년도.csv").read_bytes().decode("cp949").splitlines()[0]
    row = "a,말,sad,Sad,2,Sadness,0,Fear,1,FEAR,1,neutral,0,31,female"
    (root / "4차년도.csv").write_bytes(f"{header}\n{row}\n".encode("cp949"))
    next((root / "4차년도").iterdir()).rename(root / "4차년도" / "a.wav")
    (item,) = load("aihub-dialogue", root)
    assert isinstance(item, Utterance)
    assert item.votes == (1, 0, 0, 0, 4, 0, 4)
    assert winner(item.votes, CLASSES) is None
    assert item.ratings == ("sad", "sad", "fear", "fear", "neutral")
    assert (item.speaker, item.gender, item.age) == ("F-31", "F", 31)


def test_a_missing_dialogue_column_is_reported_with_file_and_row(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    aihub.make_dialogue(root)
    table = root / "4차년도.csv"
    table.write_bytes(table.read_bytes().replace("3번 감정,".encode("cp949"), b"third,", 1))
    with pytest.raises(
        UsageError, match=r"4차년도\.csv: row 1: no column `3번 감정`; found wav_id"
    ):
        list(loaders.load(config("aihub-dialogue", root)))


def test_scripted_gives_exactly_the_expected_records(tmp_path: Path) -> None:
    truth = aihub.make_scripted(tmp_path / "감정분류용 데이터셋")
    assert differences(truth, loaders.load(config("aihub-scripted", truth.root))) == []


def test_scripted_labels_can_be_mapped(tmp_path: Path) -> None:
    root = tmp_path / "scripts"
    truth = aihub.make_scripted(root)
    mapped = config("aihub-scripted", root, labels={"boredom": "neutral"})
    records = list(loaders.load(mapped))
    assert sum(isinstance(item, Utterance) for item in records) == len(truth.utterances) + 1
    assert not any("boredom" in item.reason for item in records if isinstance(item, Rejected))


@pytest.mark.parametrize("label_map", [{}, {"불안": "fear", "상처": "sad"}])
def test_wellness_gives_exactly_the_expected_records(
    tmp_path: Path, label_map: dict[str, str]
) -> None:
    truth = aihub.make_wellness(tmp_path / "감성대화", label_map=label_map)
    records = loaders.load(config("aihub-wellness", truth.root, labels=label_map))
    assert differences(truth, records) == []


def test_a_missing_wellness_table_is_reported_with_its_columns(tmp_path: Path) -> None:
    truth = aihub.make_wellness(tmp_path / "감성대화")
    (truth.root / "emotiondialogue.csv").unlink()
    with pytest.raises(UsageError, match=r"looked for emotiondialogue\.csv.*파일명"):
        list(loaders.load(config("aihub-wellness", truth.root)))


def test_the_parent_of_the_corpus_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    truth = aihub.make_dialogue(tmp_path / "hub", rows_per_table=1)
    with pytest.raises(UsageError, match=f"did you mean {truth.root}"):
        list(loaders.load(config("aihub-dialogue", tmp_path)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("aihub-dialogue", r"looked for 4차년도\.csv, 5차년도\.csv, 5차년도_2차\.csv, found notes"),
        ("aihub-scripted", r"looked for 스크립트\.csv, found notes"),
        ("aihub-wellness", r"looked for emotiondialogue/, found notes"),
    ],
)
def test_a_wrong_folder_is_refused_with_what_was_expected(
    tmp_path: Path, kind: CorpusKind, message: str
) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=message):
        list(loaders.load(config(kind, tmp_path)))


def test_table_names_that_are_not_utf8_are_reported_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "S").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "S") + "/4차년도.csv".encode("cp949"))).touch()
    with pytest.raises(UsageError, match=r"found 4\\xc2.*not UTF-8: unpack .*-encoding cp949"):
        load("aihub-dialogue", tmp_path / "S")
