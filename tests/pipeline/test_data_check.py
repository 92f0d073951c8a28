"""`validate --data` reads the corpora as `prepare` does, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from helpers.generators import kemdy20

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
    assert any(row["reason"] in line for row in facts["examples"] for line in printed)
    assert not (tmp_path / "w").exists()
    assert list(scratch.iterdir()) == []


def test_a_split_that_cannot_be_is_refused(tmp_path: Path) -> None:
    truth = kemdy20.make(tmp_path / "K", (1,))
    job = jobfile.parse(f"name: t\ncorpora: [{{kind: kemdy20, path: {truth.root}}}]\n", "job.yaml")
    with pytest.raises(UsageError):
        check_data(job)


def test_a_missing_corpus_is_told(tmp_path: Path) -> None:
    text = f"name: t\ncorpora: [{{kind: kemdy20, path: {tmp_path / 'none'}}}]\n"
    with pytest.raises(UsageError, match="does not exist"):
        check_data(jobfile.parse(text, "job.yaml"))
