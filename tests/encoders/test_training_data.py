"""Encoders whose published training data hold a corpus of the job, recognised by names."""

from __future__ import annotations

import unicodedata
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import CorpusConfig, CorpusKind, FeaturesConfig, SpeechEncoderConfig
from multistill.encoders.registry import BUILT_IN_SPEECH, BUILT_IN_TEXT
from multistill.encoders.training_data import (
    CORPORA,
    KINDS,
    PUBLISHED,
    TrainingData,
    corpora_of,
    mentions,
    overlaps,
)

SPELLINGS = [(corpus, each) for corpus, others in CORPORA.items() for each in (corpus, *others)]
CASES = {"as it is": str, "lower": str.lower, "upper": str.upper, "decomposed": None}


def features(speech: str = "log-mel", text: str = "untrained-electra") -> FeaturesConfig:
    return FeaturesConfig.model_validate({"speech": {"model": speech}, "text": {"model": text}})


def corpus(kind: str, **more: Any) -> CorpusConfig:
    path = {} if kind == "demo" else {"path": "/data/mine/clips.csv"}
    return CorpusConfig.model_validate({"kind": kind, **path, **more})


def table_of(name: str) -> CorpusConfig:
    return corpus("table", path=f"/data/{name}/clips.csv")


@given(
    spelled=st.sampled_from(SPELLINGS),
    case=st.sampled_from(sorted(CASES)),
    sign=st.sampled_from(["", "-", "_", " ", "."]),
    before=st.sampled_from(["", "my-", "2024_"]),
    after=st.sampled_from(["", "-v1.11", " full release", "_clips"]),
)
def test_a_table_is_recognised_however_its_corpus_is_spelled(
    spelled: tuple[str, str], case: str, sign: str, before: str, after: str
) -> None:
    known, name = spelled
    change = CASES[case]
    name = change(name) if change else unicodedata.normalize("NFD", name)
    name = before + name.replace("-", sign).replace(" ", sign) + after
    for config in (
        corpus("table", path=f"/data/{name}/labels.csv"),
        corpus("table", path=f"/data/mine/{name}.csv"),
        corpus("table", audio_root=f"/data/{name}"),
        corpus("table", name=name.strip(". ")),
    ):
        assert known in corpora_of(config)


@pytest.mark.parametrize(
    ("name", "sought"),
    [
        ("superbert-base", "superb-er"),
        ("emodbx", "EMO-DB"),
        ("tesseract", "TESS"),
        ("melding", "MELD"),
        ("kemdy2020", "KEMDy20"),
        ("wav2vec2", "emotion2vec"),
        ("", "ESD"),
    ],
)
def test_a_part_of_a_word_is_no_mention(name: str, sought: str) -> None:
    assert not mentions(name, sought)


@pytest.mark.parametrize("kind", get_args(CorpusKind))
def test_a_corpus_with_a_loader_is_known_by_its_kind_and_not_by_its_path(kind: CorpusKind) -> None:
    more = {} if kind == "demo" else {"path": "/data/IEMOCAP/clips.csv"}
    found = corpora_of(corpus(kind, **more))
    assert found == (["IEMOCAP"] if kind == "table" else [KINDS[kind]] if kind in KINDS else [])


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.names[0])
def test_every_entry_gives_its_warning_with_its_source(entry: TrainingData) -> None:
    assert entry.corpora and set(entry.corpora) <= CORPORA.keys()
    for name in entry.names:
        for model in (f"someone/{name}", f"/models/{name}/", f"a/{name.upper()}-finetuned"):
            for known in entry.corpora:
                (sentence,) = overlaps(features(model), [table_of(known)])
                (of_text,) = overlaps(features(text=model), [table_of(known)])
                assert sentence == of_text and sentence.startswith(f"`{model}` ")
                assert known in sentence and "(`table`)" in sentence
            # Of emotion2vec+ both its own entry and that of emotion2vec hold; the graver is said.
            (sentence,) = overlaps(features(model), [table_of(entry.corpora[0])])
            assert f"{entry.use} {entry.corpora[0]}" in sentence and entry.source in sentence


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.names[0])
def test_other_corpora_give_none(entry: TrainingData) -> None:
    others = [table_of(each) for each in CORPORA if each not in entry.corpora]
    sentences = " ".join(overlaps(features(entry.names[0]), others))
    assert entry.use not in sentences
    assert overlaps(features(entry.names[0]), [corpus("demo"), corpus("table")]) == []


@given(spelled=st.sampled_from(SPELLINGS), base=st.sampled_from(["wav2vec2-base", "hubert-large"]))
def test_an_encoder_that_is_named_after_a_corpus_of_the_job_gives_one(
    spelled: tuple[str, str], base: str
) -> None:
    known, name = spelled
    (sentence,) = overlaps(features(f"someone/{base}-finetuned-{name}"), [table_of(known)])
    assert f"is named after {known}" in sentence
    assert overlaps(features(f"someone/{base}"), [table_of(known)]) == []


@pytest.mark.parametrize("model", [SpeechEncoderConfig().model, *BUILT_IN_SPEECH])
@pytest.mark.parametrize("text", [*BUILT_IN_TEXT])
def test_built_in_encoders_give_none(model: str, text: str) -> None:
    everything = [corpus(kind) for kind in get_args(CorpusKind)] + [table_of(c) for c in CORPORA]
    assert overlaps(features(model, text), everything) == []


def test_one_sentence_names_all_corpora_of_one_source_and_an_encoder_is_named_once() -> None:
    job = [corpus("emodb"), table_of("iemocap"), corpus("table", name="MELD talk")]
    (sentence,) = overlaps(features("a/ExHuBERT", "a/ExHuBERT"), job)
    assert "EMO-DB (`emodb`), IEMOCAP (`table`), MELD (`MELD talk`)" in sentence


def test_a_corpus_that_nothing_is_tested_on_is_not_warned_of() -> None:
    encoder = features("a/ExHuBERT")
    assert overlaps(encoder, [corpus("emodb")])
    assert overlaps(encoder, [corpus("emodb", unlabelled=True)]) == []
