"""Notes: none is lost, whatever their number."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from multistill.config import CorpusConfig
from multistill.corpora import rejections
from multistill.corpora.labels import LabelReader
from multistill.corpora.paths import printable
from multistill.corpora.prepare import refuse_rejections
from multistill.corpora.rejections import Notes, Rejections, kind_of
from multistill.errors import MultistillError


@pytest.mark.parametrize("count", [0, 7, 100])
def test_all_notes_are_written_and_few_are_held_uncompressed(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "_BATCH", 16)
    notes, expected = Notes(), []
    for number in range(count):
        for kind, text in (("recount", ""), ("unknown vote", f"말 {number}")):
            notes.add(f"k/{number}", kind, text)
            expected.append((f"k/{number}", kind, text))
            assert len(notes._batch) < 16
    notes.write(tmp_path / "notes.parquet")
    rows = pq.read_table(tmp_path / "notes.parquet").to_pylist()
    assert [(row["source"], row["kind"], row["text"]) for row in rows] == expected
    counts = [examples["count"] for examples in notes.json().values()]
    assert counts == ([count] * 2 if count else [])


@pytest.mark.parametrize(
    ("reasons", "kind"),
    [
        (["no such file: a.wav", "no such file: b/c 1.wav"], "no such file"),
        (["c01: duplicate id; only the first", "d: duplicate id; only"], "duplicate id"),
        (
            ["the row has 3 columns where", "the row has 12 columns where"],
            "the row has # columns where",
        ),
        (["Sess01_a belongs to another session"], "belongs to another session"),
        (["'x y' is not a KEMDy20 segment id"], "is not a KEMDy# segment id"),
        (["label `1` is not; set"], "label `1` is not; set"),
    ],
)
def test_reasons_are_counted_by_what_is_wrong(reasons: list[str], kind: str) -> None:
    assert {kind_of(reason) for reason in reasons} == {kind}


def test_the_commonest_reasons_and_the_limit_name_what_is_wrong() -> None:
    rejected = Rejections()
    for number, (reason, count) in enumerate(
        [("no such file: x", 5), ("no label", 3), ("no votes", 2), ("rare", 1)]
    ):
        for row in range(count):
            rejected.add("corpus", f"k/{number}{row}", reason)
    assert rejected.commonest() == "5 x no such file; 3 x no label; 2 x no votes"
    config = CorpusConfig(kind="table", path="t.csv", max_rejected=0.25)
    refuse_rejections([config], {"table": 0.25}, rejected.commonest())
    refuse_rejections([CorpusConfig(kind="demo")], {"demo": 1.0}, rejected.commonest())
    with pytest.raises(MultistillError, match=r"`table`: 26\.0% .* limit is 25\.0% .*5 x no such"):
        refuse_rejections([config], {"table": 0.26}, rejected.commonest())


@pytest.mark.parametrize(
    ("label", "target"),
    [
        ("hapy", "happy"),
        ("anger!", "angry"),
        ("Sadnes", "sad"),
        ("슬픔들", "sad"),
        ("a: 'b\"", None),
    ],
)
def test_an_unmapped_label_names_itself_and_a_mapping_that_works(
    label: str, target: str | None
) -> None:
    reason = LabelReader().why_rejected(label)
    assert f"label `{label}` is none of the 7 classes" in reason
    advice = reason.split("set `", 1)[1].rsplit("` of the corpus", 1)[0]
    assert yaml.safe_load(advice) == {"labels": {label: target or "CLASS"}}
    if target:
        config = CorpusConfig(kind="table", path="t.csv", **yaml.safe_load(advice))
        assert LabelReader(corpus=config.labels)[label] == target


@pytest.mark.parametrize("character", ["\u200b", "\ufeff", "\x00", "\u00a0", "\u3164"], ids=ascii)
def test_invisible_characters_are_shown_as_code_points(character: str) -> None:
    assert printable(f"김{character}a") == f"김<U+{ord(character):04X}>a"
    assert printable("김철수 a.wav") == "김철수 a.wav"
