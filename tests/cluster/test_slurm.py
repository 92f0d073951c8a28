"""Batch scripts of a job file, and what is refused before one is sent. No Slurm is needed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st

from multistill.cli.app import main
from multistill.cluster.slurm import PROGRAM, SlurmRequest, render, seconds_of

JOB = "name: 'a b 100% $HOME `c`'\nworkspace: {workspace}\ncorpora: [{{kind: demo}}]\n"


def submit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["submit", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(workspace=tmp_path / "w s"))
    return path


def test_a_dry_run_prints_a_script_that_bash_accepts_and_writes_nothing(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--nodes", "2", "--time", "8:00:00", "--gpus-per-node", "a100:4"]
    options += ["--partition", "gpu", "--account", "team", "--sbatch=--mem=0", "--set", "seed=7"]
    assert submit(str(job), "--slurm", "--dry-run", *options) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in ("nodes=2", "time=8:00:00", "gpus-per-node=a100:4", "partition=gpu"):
        assert f"#SBATCH --{option}" in lines
    for option in ("account=team", "mem=0", "requeue", "signal=B:USR1@300", "ntasks-per-node=1"):
        assert f"#SBATCH --{option}" in lines
    commands = [line for line in lines if line and not line.startswith("#")]
    words = shlex.split(" ".join(commands))
    assert words[:4] == ["exec", sys.executable, "-m", PROGRAM]
    assert Path(words[4]).is_absolute() and words[4].startswith(str(tmp_path / "w s" / "slurm"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml"]
    assert submit(str(job), "--slurm", "--dry-run", "--json", *options) == 0
    [written] = json.loads(capsys.readouterr().out)["scripts"].values()
    assert written == script


def test_an_array_of_seeds_encodes_first_and_ends_with_the_whole_job(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = ["--set", "seeds=3", "--set", "seed=5", "--array", "seeds"]
    assert submit(str(job), "--slurm", "--dry-run", "--json", *seeds) == 0
    scripts = json.loads(capsys.readouterr().out)["scripts"]
    assert [Path(path).stem for path in scripts] == ["encode", "train", "rest"]
    encode, train, rest = scripts.values()
    assert "--until statistics" in encode and "--until" not in rest
    assert "#SBATCH --array=1-3\n" in train and "--set seeds=1 --until students" in train
    assert [f"seed={seed}" in train for seed in (4, 5, 6, 7, 8)] == [False, True, True, True, False]
    assert "--array" not in encode + rest


def test_the_file_of_deploy_is_the_packaged_template() -> None:
    written = (ROOT / "deploy" / "slurm" / "multistill.sbatch").read_text(encoding="utf-8")
    made = render(
        SlurmRequest(nodes=2, time="8:00:00", gpus_per_node="1"),
        ["python", "-m", PROGRAM],
        name="multistill",
        log="multistill-%j.log",
    )
    assert written == made.rstrip("\n") + ' "$@"\n'


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_time_limits_are_read_as_sbatch_reads_them(
    days: int, hours: int, minutes: int, seconds: int
) -> None:
    whole = ((days * 24 + hours) * 60 + minutes) * 60
    assert seconds_of(f"{days}-{hours}:{minutes:02}:{seconds:02}") == whole + seconds
    assert seconds_of(f"{days}-{hours}:{minutes:02}") == whole
    assert seconds_of(f"{days}-{hours}") == whole - minutes * 60
    assert seconds_of(f"{hours}:{minutes:02}:{seconds:02}") == whole - days * 86_400 + seconds
    assert seconds_of(f"{minutes}:{seconds:02}") == minutes * 60 + seconds
    assert seconds_of(f"{minutes}") == minutes * 60
