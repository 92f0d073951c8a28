"""`validate --data` reads the corpora as `prepare` does, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from helpers.corpora import write_table
from helpers.generators import kemdy20
from helpers.generators.parts import write_wav

from multistill.errors import UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.data_check import check_data, describe


def test_counts_are_those_of_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = kemdy20.make(tmp_path / "K")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    job = jobfile.parse(
        f"name: t\nworkspace: {tmp_path / 'w'}\ncorpora: [{{kind: kemdy20, path: {truth.root}}}]\n",
        "job.yaml",
    )
    facts = check_data(job)
    assert facts["corpora"] == {"kemdy20": len(truth.utterances)}
    assert facts["rejected"] == len(truth.rejected)
    assert sum(sum(counts.values()) for counts in facts["splits"].values()) == len(truth.utterances)
    printed = describe(facts)
    assert f"kemdy20: {len(truth.utterances)} utterances" in printed
    assert any(row["reason"] in line for row in facts["rejected_kinds"] for line in printed)
    assert not (tmp_path / "w").exists()
    assert list(scratch.iterdir()) == []


def test_the_commonest_reasons_are_shown_with_their_number_and_a_row(tmp_path: Path) -> None:
    """However rare reasons come first in the table."""
    good = [f"{n}.wav,t,{('sad', 'happy')[n % 2]},p{n % 4}" for n in range(12)]
    rare = [f"{n}.wav,t,rare{n},p" for n in range(12, 16)]
    often = ["gone.wav,t,sad,p", *(f"gone{n}.wav,t,sad,p" for n in range(6))]
    bored = [f"{n}.wav,t,bored,p" for n in range(23, 27)]
    file = write_table(tmp_path / "own", [*rare, *good, *bored, *often])
    text = file.read_text()
    for number in range(12, 27):
        write_wav(file.parent / f"{number}.wav", number)
    file.write_text(text)
    job = jobfile.parse(
        f"name: t\ncorpora: [{{kind: table, path: {file}, max_rejected: 1}}]\n"
        "split: {by: random, allow_leak: true}\n",
        "job.yaml",
    )
    facts = check_data(job)
    first, second, third = facts["rejected_kinds"]
    assert (first["count"], first["kind"]) == (7, "no such file")
    assert first["reason"] == "no such file: gone.wav"
    assert second["count"] == 4 and "`bored`" in second["kind"]
    assert third["count"] == 1
    printed = describe(facts)
    assert "  7 x no such file" in printed
    assert f"      such as {first['source']}: no such file: gone.wav" in printed


def test_a_split_that_cannot_be_is_refused(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K", (1,))
    job = jobfile.parse(f"name: t\ncorpora: [{{kind: kemdy20, path: {truth.root}}}]\n", "job.yaml")
    with pytest.raises(UsageError):
        check_data(job)


def test_a_missing_corpus_is_told(tmp_path: Path) -> None:
    text = f"name: t\ncorpora: [{{kind: kemdy20, path: {tmp_path / 'none'}}}]\n"
    with pytest.raises(UsageError, match="does not exist"):
        check_data(jobfile.parse(text, "job.yaml"))
