"""Class sets: any classes, in any order, merged, left out or renamed, from label to manifest."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.corpora import load, reasons, utterances, write_table
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from multistill.config import CLASSES, CorpusConfig, LabelsConfig, SplitConfig
from multistill.config.emotions import SYNONYMS, emotion_key, emotion_of
from multistill.corpora import loaders
from multistill.corpora.labels import LabelReader
from multistill.corpora.manifest import classes_of, read_manifest
from multistill.corpora.prepare import prepare
from multistill.corpora.records import Record, Utterance

RANDOM = SplitConfig(by="random", allow_leak=True)
EMODB = ["anger", "boredom", "disgust", "anxiety/fear", "happiness", "sadness", "neutral"]

# The job's `labels`, the corpus's own, and label in the table -> class (None: rejected).
SETS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, str | None]]] = {
    "EMO-DB's seven": (
        {"classes": EMODB},
        {},
        {
            **{"Wut": "anger", "Langeweile": "boredom", "Ekel": "disgust", "ANGST": "anxiety/fear"},
            **{"Freude": "happiness", "Trauer": "sadness", "Neutral ": "neutral"},
        },
    ),
    "IEMOCAP-4": (
        {
            "classes": ["angry", "happy", "sad", "neutral"],
            "merge": {"happy": ["happy", "excited"]},
            "leave_out": ["frustrated", "surprise", "fear", "disgust", "other"],
        },
        {},
        {
            **{"ang": "angry", "hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral"},
            **{"fru": None, "sur": None, "fea": None, "dis": None, "oth": None, "xxx": None},
        },
    ),
    "IEMOCAP-6": (
        {"classes": ["happy", "sad", "neutral", "angry", "excited", "frustrated"]},
        {},
        {
            **{"ang": "angry", "hap": "happy", "exc": "excited", "sad": "sad", "neu": "neutral"},
            **{"fru": "frustrated", "sur": None, "xxx": None},
        },
    ),
    "MSP-Podcast's eight": (
        {
            "classes": [
                *("anger", "sadness", "happiness", "surprise"),
                *("fear", "disgust", "contempt", "neutral"),
            ],
        },
        {
            **{"A": "anger", "S": "sadness", "H": "happiness", "U": "surprise", "F": "fear"},
            **{"D": "disgust", "C": "contempt", "N": "neutral"},
        },
        {
            **{"A": "anger", "S": "sadness", "H": "happiness", "U": "surprise", "F": "fear"},
            **{"D": "disgust", "C": "contempt", "N": "neutral", "O": None, "X": None},
        },
    ),
    "binary": (
        {
            "classes": ["negative", "other"],
            "merge": {"negative": ["angry", "sad", "fear", "disgust"]},
            "others": "other",
        },
        {},
        {
            **{"분노": "negative", "sadness": "negative", "fearful": "negative"},
            **{"happy": "other", "중립": "other", "gloomy": "other"},
        },
    ),
    "synonyms of the job": (
        {"classes": ["happy", "sad"], "synonyms": {"joy": ["Amused"], "sad": ["gloomy"]}},
        {},
        {"amused": "happy", "GLOOMY": "sad", "Joy": "happy", "sorrow": None},
    ),
    "fifty": (
        {"classes": [f"feeling {number}" for number in range(50)]},
        {},
        {f"Feeling  {number}": f"feeling {number}" for number in range(50)},
    ),
}


def read(path: Path, labels: LabelsConfig, own: dict[str, str]) -> list[Record]:
    return list(loaders.load(CorpusConfig(kind="table", path=str(path), labels=own), labels))


@pytest.mark.parametrize("name", SETS)
def test_a_class_set_from_the_table_to_the_manifest(name: str, tmp_path: Path) -> None:
    section, own, expected = SETS[name]
    labels = LabelsConfig(**section)
    rows = [f"{n}.wav,text {n},{label},p{n}" for n, label in enumerate([*expected] * 8)]
    path = write_table(tmp_path / "corpus", rows)
    config = CorpusConfig(kind="table", path=str(path), labels=own)
    out = tmp_path / "out"
    out.mkdir()
    summary = prepare([config], RANDOM, out, labels=labels, unpacked=tmp_path)
    manifest = read_manifest(out)
    assert classes_of(manifest) == tuple(labels.classes)
    given_labels = {f"table/{n}": label for n, label in enumerate([*expected.values()] * 8)}
    kept = {key: label for key, label in given_labels.items() if label is not None}
    assert dict(zip(*manifest.select(["utterance_id", "label"]).to_pydict().values())) == kept  # noqa: B905
    for row in manifest.to_pylist():
        one_hot = [float(name == row["label"]) for name in labels.classes]
        assert row["label_soft"] == one_hot
    # What has no class is counted by label, not dropped in silence.
    none = [label for label, name in expected.items() if name is None]
    assert summary["rejected"] == 8 * len(none)
    told = {group["kind"].split("`")[1]: group["count"] for group in summary["rejected_kinds"]}
    assert all(told[label] == 8 for label in list(told)) and set(told) <= set(none)


def test_why_a_label_has_no_class_is_said() -> None:
    reader = LabelReader(LabelsConfig(classes=["sad", "happy"], leave_out=["frustrated"]))
    assert reader["fru"] is None and reader["bored"] is None and reader["sadd"] is None
    assert "is left out (labels.leave_out)" in reader.why_rejected("fru")
    assert "add it to `labels.classes`" in reader.why_rejected("bored")
    assert '`labels: {"sadd": sad}`' in reader.why_rejected("sadd")


def test_counts_of_merged_emotions_are_added(tmp_path: Path) -> None:
    header = "audio_path,text,speaker,happy,excited,neutral,boredom"
    path = write_table(tmp_path / "own", ["0.wav,t,p,2,3,4,9", "1.wav,t,p,0,0,4,9"], header)
    merged = LabelsConfig(classes=["neutral", "happy"], merge={"happy": ["excited"]})
    votes = [utterance.votes for utterance in utterances(read(path, merged, {}))]
    assert votes == [(4, 5), (4, 0)]


def test_votes_of_raters_for_merged_and_left_out_emotions(tmp_path: Path) -> None:
    header = "audio_path,text,speaker,rater_a,rater_b,rater_c,rater_d"
    path = write_table(tmp_path / "own", ["0.wav,t,p,hap,Excited,neu,fru"], header)
    labels = LabelsConfig(
        classes=["neutral", "happy"], merge={"happy": ["exc"]}, leave_out=["frustrated"]
    )
    [utterance] = utterances(read(path, labels, {}))
    assert utterance.votes == (1, 2)
    assert utterance.ratings == ("happy", "happy", "neutral", None)


def test_a_row_of_votes_needs_one_count_per_class(tmp_path: Path) -> None:
    header = "audio_path,text,speaker,votes"
    path = write_table(tmp_path / "own", ['0.wav,t,p,"[1, 2]"', '1.wav,t,p,"[1, 2, 3]"'], header)
    records = read(path, LabelsConfig(classes=["sad", "happy"]), {})
    assert [item.votes for item in utterances(records)] == [(1, 2)]
    assert "has 3 counts, needs 2" in next(iter(reasons(records).values()))


def test_emodb_with_all_of_its_emotions(tmp_path: Path) -> None:
    from helpers.generators.parts import write_wav

    (tmp_path / "wav").mkdir()
    for number, letter in enumerate("WLEAFTN"):
        write_wav(tmp_path / "wav" / f"03a01{letter}a.wav", number)
    config = CorpusConfig(kind="emodb", path=str(tmp_path))
    records = loaders.load(config, LabelsConfig(classes=EMODB))
    names = {u.utterance_id[5]: u.label for u in records if isinstance(u, Utterance)}
    letters = {"W": 0, "L": 1, "E": 2, "A": 3, "F": 4, "T": 5, "N": 6}
    assert names == {letter: EMODB[index] for letter, index in letters.items()}
    assert len(utterances(load("emodb", tmp_path))) == 6, "boredom is none of the default classes"


def test_no_spelling_stands_for_two_emotions() -> None:
    spellings = [key for emotion, names in SYNONYMS.items() for key in (emotion, *names)]
    assert [key for key, times in Counter(spellings).items() if times > 1] == []
    assert [key for key in spellings if emotion_key(key) != key] == []


@given(st.sampled_from([*SYNONYMS]), st.data())
def test_case_spaces_and_unicode_form_do_not_matter(emotion: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([emotion, *SYNONYMS[emotion]]))
    form = data.draw(st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
    written = unicodedata.normalize(form, data.draw(st.sampled_from([name, name.upper()])))
    pad = data.draw(st.text(" \t ", max_size=3))
    assert emotion_of(f"{pad}{written.replace(' ', '  ')}{pad}") == emotion


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"classes": ["sad"]}, "at least 2"),
        ({"classes": [f"c{n}" for n in range(51)]}, "at most 50"),
        ({"classes": ["sad", "tie"]}, "a class cannot be called `tie`"),
        ({"classes": ["sad", " "]}, "a name of 1 to 40 characters"),
        ({"classes": ["sad", "a\u200b"]}, "a character that shows nothing"),
        ({"classes": ["sad", "sadness"]}, "they are spellings of one emotion"),
        ({"classes": ["sad", "happy"], "merge": {"joy": ["fear"]}}, "`joy` is not a class"),
        (
            {"classes": ["sad", "happy"], "merge": {"sad": ["fear"], "happy": ["fearful"]}},
            "given to class `sad` and to class `happy`",
        ),
        ({"classes": ["sad", "happy"], "leave_out": ["joy"]}, "and to `leave_out`"),
        ({"classes": ["sad", "happy"], "others": "rest"}, "`rest` is not a class"),
    ],
)
def test_a_class_set_that_contradicts_itself(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        LabelsConfig(**section)


@given(
    st.lists(st.sampled_from([*SYNONYMS]), min_size=2, unique=True),
    st.sampled_from([key for emotion, names in SYNONYMS.items() for key in (emotion, *names)]),
)
def test_the_table_of_labels_says_what_a_reader_does(classes: list[str], name: str) -> None:
    labels = LabelsConfig(classes=classes)
    rows = {row["emotion"]: row for row in labels.table()}
    row = rows[emotion_of(name)]
    assert LabelReader(labels)[name] == row["class"]
    assert name == row["emotion"] or name in row["spellings"]


def test_the_published_seven_are_the_default() -> None:
    assert tuple(LabelsConfig().classes) == CLASSES
    assert [row["class"] for row in LabelsConfig().table()][:7] == list(CLASSES)
