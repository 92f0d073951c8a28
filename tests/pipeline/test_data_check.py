"""`validate --data` reads the corpora as `prepare` does, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from helpers.corpora import write_table
from helpers.generators import kemdy20
from helpers.generators.parts import write_wav
from helpers.recording_logger import RecordingLogger

from multistill import pipeline
from multistill.audio import digests
from multistill.cli.app import main
from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.data_check import check_data, describe


def test_counts_are_those_of_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = kemdy20.make(tmp_path / "K")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    job = jobfile.parse(
        f"name: t\nworkspace: {tmp_path / 'w'}\ncorpora: [{{kind: kemdy20, path: {truth.root}}}]\n"
        "distillation: {targets: in-sample}\n",
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


def table_job(tmp_path: Path, rows: list[str], **job: str) -> JobConfig:
    table = write_table(tmp_path / "corpus", rows)
    text = f"name: t\nworkspace: {tmp_path / 'ws'}\ncorpora: [{{kind: table, path: {table}}}]\n"
    return jobfile.parse(text + "".join(f"{k}: {v}\n" for k, v in job.items()), "job.yaml")


def labelled(count: int) -> list[str]:
    """Rows of a table, each of another speaker."""
    return [f"{n}.wav,t,{'sad' if n % 2 else 'happy'},p{n}" for n in range(count)]


REFUSED = [
    # rows, split, what is refused, the reason behind it
    ("{n}.wav,t,gloomy,p{n}", "{by: speaker}", "need at least 3 groups", "7 x label `gloomy`"),
    ("gone{n}.wav,t,sad,p{n}", "{by: speaker}", "need at least 3 groups", "7 x no such file"),
    ("{n}.wav,t,gloomy,p{n}", "{by: random, allow_leak: true}", "none of the 2", "7 x label `glo"),
]


@pytest.mark.parametrize(("row", "split", "refused", "reason"), REFUSED)
def test_a_split_refused_for_lack_of_rows_says_why_they_are_gone(
    tmp_path: Path, row: str, split: str, refused: str, reason: str
) -> None:
    rows = labelled(2) + [row.format(n=n) for n in range(2, 9)]
    job = table_job(tmp_path, rows, split=split)
    with pytest.raises(UsageError) as error:
        check_data(job)
    assert refused in str(error.value)
    assert f"of 9 rows and recordings, 7 are rejected: {reason}" in str(error.value)


def test_a_split_refused_without_rejections_has_no_such_clause(tmp_path: Path) -> None:
    job = table_job(tmp_path, labelled(2), split="{by: speaker}")
    with pytest.raises(UsageError) as error:
        check_data(job)
    assert "rejected" not in str(error.value)


def test_too_few_groups_for_out_of_fold_targets_are_seen(tmp_path: Path) -> None:
    """Three speakers, one of them in each part: there is no second fold to train on."""
    rows = [f"{n}.wav,t,{('sad', 'happy')[n % 2]},p{n % 3}" for n in range(12)]
    split = "{by: speaker}"
    with pytest.raises(UsageError, match=r"distillation\.targets: in-sample"):
        check_data(table_job(tmp_path, rows, split=split))
    check_data(table_job(tmp_path, rows, split=split, distillation="{targets: in-sample}"))


def test_what_prepare_logs_is_told_with_classes_that_a_part_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["0.wav,t,happy,p0,test", "1.wav,t,sad,p1,valid", "2.wav,t,sad,p2,train"]
    rows += ["3.wav,t,sad,p3,test", "4.wav,t,gloomy,p4,train"]
    table = write_table(tmp_path / "corpus", rows, "audio_path,text,label,speaker,split")
    file = tmp_path / "job.yaml"
    file.write_text(
        f"name: t\nworkspace: {tmp_path / 'ws'}\nsplit: {{by: column}}\n"
        f"corpora: [{{kind: table, path: {table}}}]\ndistillation: {{targets: in-sample}}\n"
    )
    logger = RecordingLogger()
    facts = check_data(jobfile.load(file), logger)
    assert facts["gaps"] == [
        {"kind": "classes-not-trained", "title": "CLASSES NEVER TRAINED", "classes": ["happy"]}
    ]
    assert "CLASSES NEVER TRAINED: happy" in describe(facts)
    told = "\n".join(logger.messages)
    assert "4 utterances read, 1 rejected" in told and "rejected: 1 x label `gloomy`" in told
    assert "CLASSES NEVER TRAINED: happy: clips of test" in told
    for json_option in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            main(["validate", str(file), "--data", *json_option])
        assert end.value.code == 0
        printed = capsys.readouterr()
        assert "CLASSES NEVER TRAINED" in printed.out
        assert "rejected: 1 x label `gloomy`" in printed.err
        if json_option:
            assert json.loads(printed.out)["data"]["gaps"] == facts["gaps"]


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Descriptors of recordings of which every byte is read from now on."""
    calls: list[int] = []
    digest_of = digests.digest_of

    def counted(handle: int) -> str:
        calls.append(handle)
        return digest_of(handle)

    monkeypatch.setattr(digests, "digest_of", counted)
    return calls


def test_recordings_are_hashed_once_where_there_is_a_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    job = table_job(tmp_path, labelled(9), split="{by: speaker}")
    workspace = Path(job.workspace)
    reads = hashed(monkeypatch)
    facts = check_data(job)
    assert len(reads) == 9
    assert not workspace.exists(), "no workspace is made for it"
    workspace.mkdir()
    check_data(job)
    assert len(reads) == 18
    kept = {path.name for path in workspace.iterdir()}
    assert "digests.npy" in kept and kept <= {"digests.npy", ".digests.npy.lock"}
    assert check_data(job) == facts
    assert len(reads) == 18, "the digests are remembered"
    pipeline.run(job, until="prepare")
    assert len(reads) == 18, "by `prepare`, too"
    changed = tmp_path / "corpus" / "3.wav"
    changed.write_bytes(changed.read_bytes()[:-2] + b"\1\1")
    check_data(job)
    assert len(reads) == 19


def test_digests_of_a_workspace_that_cannot_be_written_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    job = table_job(tmp_path, labelled(9), split="{by: speaker}")
    workspace = Path(job.workspace)
    workspace.mkdir()
    check_data(job)
    before = {path.name: path.stat().st_mtime_ns for path in workspace.iterdir()}
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    reads = hashed(monkeypatch)
    check_data(job)
    assert reads == []
    assert {path.name: path.stat().st_mtime_ns for path in workspace.iterdir()} == before
