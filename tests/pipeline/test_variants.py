"""Jobs of one name that differ are variants: listed, asked for, and only the named one is run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from multistill.cli.app import main
from multistill.errors import UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.variants import choose, find_variants, job_file
from multistill.workspace import fingerprint, write_atomic


def ran(workspace: Path, name: str, *overrides: str, at: float = 1e9) -> str:
    """Note a job as having run, as `multistill run` does; returns its fingerprint."""
    job = jobfile.parse(
        f"name: {name}\nworkspace: {workspace}\ncorpora: [{{kind: demo}}]\nsearch: true\n",
        "x.yaml",
        overrides,
    )
    key = fingerprint("run", 1, job.identity(), {})
    file = job_file(workspace, name, key)
    write_atomic(file, job.to_yaml())
    os.utime(file, (at, at))
    return key


DIFFERENCES = [
    "seed=1",
    "search.trials=3",
    "teacher.train.epochs=2",
    "split.by=speaker",
    "features.speech.model=untrained-wav2vec2",
]


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_variants_are_listed_with_what_differs_and_one_is_asked_for(
    tmp_path: Path, difference: str
) -> None:
    old, new = ran(tmp_path, "emo", at=1e9), ran(tmp_path, "emo", difference, at=2e9)
    ran(tmp_path, "emo-2")
    assert [variant.key for variant in find_variants(tmp_path, "emo")] == [new, old]
    with pytest.raises(UsageError) as caught:
        choose(tmp_path, "emo", None)
    sentence = str(caught.value)
    assert "\n" not in sentence
    key, value = difference.split("=")
    assert f"{key} {value}" in sentence
    # The prefixes of the sentence name one variant each.
    prefixes = re.findall(r"\b([0-9a-f]{6,16}) of \d{4}-", sentence)
    assert {choose(tmp_path, "emo", prefix).key for prefix in prefixes} == {old, new}
    with pytest.raises(UsageError, match="no variant of `emo` has the fingerprint `zz`"):
        choose(tmp_path, "emo", "zz")


@pytest.mark.parametrize("name", ["emo", "감정 인식", "감" * 200, "a" * 300, "x" * 199 + "가"])
def test_the_only_job_of_a_name_needs_no_choice(tmp_path: Path, name: str) -> None:
    key = ran(tmp_path, name)
    ran(tmp_path, name[:-1] + "z", "seed=3")
    assert choose(tmp_path, name, None).key == key
    assert jobfile.load(choose(tmp_path, name, None).file).name == name


@pytest.mark.parametrize("command", [["resume"], ["extend", "--trials", "2"], ["join"]])
def test_no_command_takes_a_variant_that_was_not_named(
    tmp_path: Path,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from multistill import pipeline
    from multistill.pipeline import searches

    seen: list[int] = []
    monkeypatch.setattr(searches, "extended", lambda job, *_: job)
    monkeypatch.setattr(searches, "join", lambda job, *_: seen.append(job.seed) or 0)

    def run(job: object, **_: object) -> None:
        seen.append(job.seed)  # type: ignore[attr-defined]
        raise UsageError("stopped here")

    monkeypatch.setattr(pipeline, "run", run)
    keys = {seed: ran(tmp_path, "emo", f"seed={seed}", at=seed) for seed in (1, 2, 3)}
    arguments = ["search", command[0], "emo", *command[1:], "--workspace", str(tmp_path)]

    def code(*more: str) -> object:
        with pytest.raises(SystemExit) as end:
            main([*arguments, *more])
        return end.value.code

    assert code() == 2
    assert seen == []
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "3 variants of `emo`" in error
    code("--variant", keys[2][:6])
    assert seen == [2]
