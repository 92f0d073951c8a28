"""Advice that works, about searches, resources and clusters: provoked and followed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.advice import says, told
from helpers.search_case import make_spec, write_spec

from multistill.cli.app import main
from multistill.cluster.address import job_server, refuse_unsafe, token
from multistill.config import ResourcesConfig, SearchConfig
from multistill.errors import MultistillError, UsageError
from multistill.pipeline import jobfile, searches
from multistill.search.capacity import capacity_problems
from multistill.search.spec import SPEC, SearchSpec
from multistill.search.study import _open
from multistill.training.capacity import require

Nodes = list[dict[str, float]]
SMALL: Nodes = [{"CPU": 4.0}]
GPUS: Nodes = [{"CPU": 8.0, "GPU": 1.0}]
APART: Nodes = [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 2.0}]

TRIALS: list[tuple[dict[str, Any], Nodes, str, list[tuple[dict[str, Any], Nodes]]]] = [
    (
        {"cpus_per_trial": 8},
        SMALL,
        "lower it or add a node that has them",
        [({"cpus_per_trial": 4}, SMALL), ({"cpus_per_trial": 8}, [*SMALL, {"CPU": 8.0}])],
    ),
    (
        {"gpus_per_trial": 2},
        GPUS,
        "lower it or add a node that has them",
        [({"gpus_per_trial": 1}, GPUS), ({"gpus_per_trial": 2}, [{"CPU": 8.0, "GPU": 2.0}])],
    ),
    (
        {"cpus_per_trial": 4, "gpus_per_trial": 1},
        APART,
        "that a trial requests together; lower one of them",
        [
            ({"cpus_per_trial": 1, "gpus_per_trial": 1}, APART),
            ({"cpus_per_trial": 4, "gpus_per_trial": 0}, APART),
        ],
    ),
    (
        {"workers_per_trial": 3, "cpus_per_trial": 2},
        SMALL,
        "workers with {} CPUs and {} GPUs each; lower it or add nodes",
        [
            ({"workers_per_trial": 2, "cpus_per_trial": 2}, SMALL * 2),
            ({"workers_per_trial": 3, "cpus_per_trial": 2}, SMALL * 4),
        ],
    ),
]


@pytest.mark.parametrize(("wrong", "nodes", "advice", "followed"), TRIALS)
def test_advice_about_the_resources_of_trials(
    wrong: dict[str, Any],
    nodes: Nodes,
    advice: str,
    followed: list[tuple[dict[str, Any], Nodes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multistill.search.capacity.cores", lambda: 64)
    [problem] = capacity_problems(SearchConfig(**wrong), nodes)
    says(advice, problem)
    for config, other_nodes in followed:
        assert capacity_problems(SearchConfig(**config), other_nodes) == []


@pytest.mark.parametrize(
    ("workers", "need", "nodes", "key", "followed"),
    [
        (5, {"CPU": 1.0}, SMALL, "train.workers", (4, {"CPU": 1.0}, SMALL)),
        (3, {"CPU": 2.0}, SMALL, "train.cpus_per_worker", (3, {"CPU": 1.0}, SMALL)),
        (2, {"CPU": 1.0, "GPU": 1.0}, GPUS, "gpus_per_worker", (2, {"CPU": 1.0, "GPU": 0.5}, GPUS)),
        (2, {"CPU": 1.0, "GPU": 1.0}, GPUS, "add nodes", (2, {"CPU": 1.0, "GPU": 1.0}, GPUS * 2)),
    ],
)
def test_advice_about_the_resources_of_a_training(
    workers: int, need: dict[str, float], nodes: Nodes, key: str, followed: Any
) -> None:
    with pytest.raises(MultistillError, match=key) as refused:
        require("x", workers, need, nodes)
    says("or add nodes (for an autoscaling cluster, set `resources.wait_for`)", refused.value)
    ResourcesConfig(wait_for=need)
    require("x", *followed)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ("ray://head:10001", "give http://HOST:{} or https://HOST"),
        ("http://", "give http://HOST:{} or https://HOST"),
        ("head:port", "give http://HOST:{} or https://HOST"),
        ("https://ann:geheim@head", "set RAY_AUTH_TOKEN to the token, or RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_advice_about_the_address_of_a_cluster(
    wrong: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with told(advice, UsageError):
        job_server(wrong)
    assert job_server("http://head:8265") == "http://head:8265"
    assert job_server("https://head") == "https://head"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "token").write_text("geheim\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert token() == "geheim"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    assert token() == "other"


def test_advice_about_a_public_address() -> None:
    with pytest.raises(UsageError) as refused:
        refuse_unsafe("http://8.8.8.8:8265", has_token=True)
    sentence = str(refused.value)
    says("and submit to http://127.0.0.1:{}, or use https with RAY_AUTH_TOKEN", sentence)
    [local] = re.findall(r"submit to (http://\S+),", sentence)
    refuse_unsafe(local, has_token=False)
    refuse_unsafe("https://8.8.8.8:8265", has_token=True)


def test_advice_about_the_folder_of_a_search(tmp_path: Path) -> None:
    out = tmp_path / "search"
    _open(make_spec(), out)
    with told("use another folder or remove it", UsageError):
        _open(make_spec(metric="uar"), out)
    _open(make_spec(metric="uar"), tmp_path / "another")
    shutil.rmtree(out)
    _open(make_spec(metric="uar"), out)
    with told("give the folder or name of a search that was started", UsageError):
        SearchSpec.read(tmp_path)
    write_spec(out)
    SearchSpec.read(out)
    (out / SPEC).write_text("{")
    with told("is damaged ({}); remove the folder {} and run the job again", MultistillError):
        SearchSpec.read(out)
    shutil.rmtree(out)
    _open(make_spec(), out)


@pytest.mark.parametrize("name", ["emo", "emotion of speech", "감정", "it's"])
def test_the_commands_in_advice_about_a_search_can_be_pasted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from multistill import pipeline

    file = tmp_path / "job.yaml"
    file.write_text(
        f'name: "{name}"\nworkspace: {tmp_path / "ws"}\ncorpora: [{{kind: demo}}]\nsearch: true\n',
        encoding="utf-8",
    )
    job = jobfile.load(file)
    with pytest.raises(UsageError) as refused:
        searches.extended(job, 4)
    [command] = re.findall(r"`multistill (search resume [^`]*)`", str(refused.value))
    resumed: list[str] = []

    def run(job: Any, **_: object) -> None:
        resumed.append(job.name)
        raise UsageError("stopped here")

    monkeypatch.setattr(pipeline, "run", run)
    (tmp_path / "ws" / "jobs").mkdir(parents=True)
    shutil.copy(file, tmp_path / "ws" / "jobs" / f"{name}-{'0' * 16}.yaml")
    with pytest.raises(SystemExit):
        main([*shlex.split(command), "--workspace", str(tmp_path / "ws")])
    assert resumed == [name]
    assert capsys.readouterr().err == "multistill: stopped here\n"
