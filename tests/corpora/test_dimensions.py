"""Valence, arousal and dominance from a table to the manifest: scale, gaps, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import reasons, utterances, write_table
from pydantic import ValidationError

from multistill.config import CorpusConfig, SplitConfig, TasksConfig
from multistill.corpora.loaders import load
from multistill.corpora.manifest import dimension_array, label_arrays, read_manifest
from multistill.corpora.prepare import prepare
from multistill.corpora.records import Note
from multistill.errors import MultistillError

HEADER = "audio_path,label,speaker,valence,arousal,dominance,split"
BOTH = TasksConfig(classes=1.0, valence=1.0)


def rows(*cells: str) -> list[str]:
    """Rows of label and values, of six speakers in three parts."""
    parts = ("train", "train", "valid", "valid", "test", "test")
    return [
        f"{number}.wav,{cell.split(',')[0]},p{number},{','.join(cell.split(',')[1:])},{part}"
        for number, (cell, part) in enumerate(zip(cells, parts, strict=True))
    ]


GOOD = ("happy,2,3,1", "sad,4,3,5", "happy,2,3,1", "sad,5,3,5", "happy,2,3,2", "sad,3,3,5")


def prepared(folder: Path, cells: tuple[str, ...], tasks: TasksConfig = BOTH, **corpus: object):
    table = write_table(folder, rows(*cells), HEADER)
    out = folder / "out"
    out.mkdir()
    config = CorpusConfig(kind="table", path=str(table), **corpus)
    summary = prepare(
        [config], SplitConfig(by="column"), out, tasks=tasks, unpacked=folder / "unpacked"
    )
    return summary, read_manifest(out)


def test_values_of_another_scale_are_mapped_to_one_to_five(tmp_path: Path) -> None:
    cells = ("happy,1,4,7", *GOOD[1:])
    _, manifest = prepared(tmp_path, cells, scale=[1, 7])
    names = ("valence", "arousal", "dominance")
    np.testing.assert_allclose(dimension_array(manifest, names)[0], [1.0, 3.0, 5.0])


def test_a_clip_with_a_value_is_kept_without_a_class(tmp_path: Path) -> None:
    """And one with a class without a value; a clip with neither is rejected."""
    cells = (*GOOD[:2], "happy,3,,", "sad,4,,", *GOOD[4:])
    more = [
        "6.wav,,p0,2,,,train",
        "7.wav,,p0,,,,train",
        "8.wav,sad,p0,,,,train",
        "9.wav,confused,p0,4,,,train",
        "10.wav,confused,p0,,,,train",
    ]
    table = write_table(
        tmp_path,
        [*rows(*cells), *more],
        HEADER,
    )
    config = CorpusConfig(kind="table", path=str(table))
    records = list(load(config, tasks=BOTH))
    kept = {each.utterance_id: each for each in utterances(records)}
    assert kept["6"].label is None and kept["6"].votes is None and kept["6"].valence == 2
    assert kept["8"].label == "sad" and kept["8"].valence is None
    assert kept["9"].label is None
    assert [note.kind for note in records if isinstance(note, Note)] == ["no class"]
    assert [reasons(records)[f"t.csv:{line}"][:21] for line in (9, 12)] == [
        "no label and no votes",
        "label `confused` is n",
    ]
    # Without the task, a clip needs a class.
    assert {"6", "9"} & {each.utterance_id for each in utterances(list(load(config)))} == set()
    out = tmp_path / "out"
    out.mkdir()
    summary = prepare(
        [config], SplitConfig(by="column"), out, tasks=BOTH, unpacked=tmp_path / "unpacked"
    )
    labels, shares = label_arrays(read_manifest(out))
    assert (labels[6], shares[6].sum()) == (-1, 0)
    assert summary["dimensions"] == {"valence": 8}


def test_a_table_may_have_values_and_no_label(tmp_path: Path) -> None:
    lines = [f"{number}.wav,p{number},{number + 1}" for number in range(5)]
    table = write_table(tmp_path, lines, "audio_path,speaker,valence")
    records = list(load(CorpusConfig(kind="table", path=str(table)), tasks=BOTH))
    assert [each.valence for each in utterances(records)] == [1, 2, 3, 4, 5]


def test_values_off_the_scale_are_refused_with_their_number_and_the_first(tmp_path: Path) -> None:
    cells = ("happy,7,3,1", "sad,4,3,5", "happy,0.5,9,1", *GOOD[3:])
    with pytest.raises(MultistillError) as error:
        prepared(tmp_path, cells)
    assert str(error.value) == (
        "2 values of valence off the scale (first: table/t.csv:2: 0: valence 7 is not from 1 to "
        "5); correct them, or set `scale` of the corpus, e.g. scale: [1, 7]"
    )
    # A dimension that the job does not predict is only noted.
    _, manifest = prepared(tmp_path / "other", cells, TasksConfig(classes=1.0, dominance=1.0))
    assert manifest["arousal"][2].as_py() is None


def test_a_part_without_different_values_is_refused(tmp_path: Path) -> None:
    cells = (*GOOD[:4], "happy,,3,1", "sad,,3,5")
    with pytest.raises(MultistillError, match="`valence`: the test part has 0 values"):
        prepared(tmp_path, cells)


def test_a_scale_is_ascending_and_of_a_table() -> None:
    with pytest.raises(ValidationError, match="write the lowest value first"):
        CorpusConfig(kind="table", path="t.csv", scale=[5, 1])
    with pytest.raises(ValidationError, match="remove `scale`"):
        CorpusConfig(kind="emodb", path="e", scale=[1, 5])


def test_without_the_task_classes_labels_decide_nothing(tmp_path: Path) -> None:
    """Neither an unknown label nor a single class matters, and no clip has a class."""
    cells = ("confused,2,3,1", "sad,4,3,5", "sad,2,3,1", "sad,5,3,5", "sad,2,3,2", "sad,3,3,5")
    _, manifest = prepared(tmp_path, cells, TasksConfig(valence=1.0))
    labels, shares = label_arrays(manifest)
    assert len(manifest) == 6 and (labels == -1).all() and not shares.any()
