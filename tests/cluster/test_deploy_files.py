"""The deployment files: valid for the tools that read them, and secure by default."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.paths import ROOT

LAUNCHER = ROOT / "cluster.yaml"
IMAGE_FILES = ["Containerfile", "kuberay-cluster.yaml", "kuberay-job.yaml"]


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return yaml.safe_load(LAUNCHER.read_text(encoding="utf-8"))


def test_the_launcher_file_conforms_to_rays_schema(launcher: dict[str, Any]) -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**launcher, "max_wrokers": 1}, schema)


def test_every_ray_starts_with_authentication(launcher: dict[str, Any]) -> None:
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [line for line in launcher[commands] if "ray start" in line]
        assert len(starts) == 1
        environment = starts[0].split("ray start")[0]
        assert "#" not in starts[0]  # a comment in a folded scalar would hide the rest of the line
        assert "RAY_AUTH_MODE=token" in environment
        assert "RAY_AUTH_TOKEN_PATH=" in environment
        assert "RAY_AUTH_TOKEN=" not in environment


def test_the_head_node_runs_no_tasks_and_its_dashboard_is_local(launcher: dict[str, Any]) -> None:
    head = launcher["available_node_types"][launcher["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    start = next(line for line in launcher["head_start_ray_commands"] if "ray start" in line)
    options = {
        name.lstrip("-"): value
        for name, _, value in (part.partition("=") for part in shlex.split(start))
    }
    assert options["dashboard-host"] == "127.0.0.1"
    assert options["num-cpus"] == "0"


def test_workers_are_autoscaled_on_demand_gpu_nodes(launcher: dict[str, Any]) -> None:
    workers = {
        name: kind
        for name, kind in launcher["available_node_types"].items()
        if name != launcher["head_node_type"]
    }
    for kind in workers.values():
        assert kind["resources"]["GPU"] >= 1
        assert kind["min_workers"] == 0 < kind["max_workers"]
        assert "InstanceMarketOptions" not in kind["node_config"]


def test_rays_default_setup_commands_are_disabled(launcher: dict[str, Any]) -> None:
    assert launcher["setup_commands"] == []
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert not any("ray" in command.split() for command in launcher[commands])


@pytest.mark.parametrize("name", ["cluster.yaml", *(f"deploy/{name}" for name in IMAGE_FILES)])
def test_image_tags_are_the_version_of_the_package(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tags = re.findall(r"registry\.example\.org/multistill:(\S+)", (ROOT / name).read_text())
    assert set(tags) == {version}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_kuberay_clusters_authenticate_and_run_no_tasks_on_the_head_node(name: str) -> None:
    document = next(d for d in documents(name) if d["kind"] in {"RayCluster", "RayJob"})
    spec = document["spec"]
    cluster = spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]
    assert document["apiVersion"] == "ray.io/v1"
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"].startswith("2.60.")
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        container = group["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1
    if document["kind"] == "RayJob":
        assert "resources.address=auto" in spec["entrypoint"]
        assert spec["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_a_pod_that_has_to_go_is_drained_within_its_grace_period(name: str) -> None:
    """With a command that the pinned Ray accepts, before the pod's processes get SIGTERM."""
    from ray.scripts.scripts import drain_node

    spec = next(d for d in documents(name) if d["kind"] in {"RayCluster", "RayJob"})["spec"]
    for group in spec.get("rayClusterSpec", spec)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        shell, option, line = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, option) == ("/bin/sh", "-c")
        drain, sleep = (shlex.split(part) for part in line.split(";"))
        assert drain[:2] == ["ray", drain_node.name]
        options = drain_node.make_context("ray", drain[2:], resilient_parsing=False).params
        assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"  # others are refused if busy
        assert options["address"] == "$RAY_ADDRESS"  # KubeRay sets it on workers
        assert sleep[0] == "sleep"
        assert int(sleep[1]) < options["deadline_remaining_seconds"]
        assert options["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"]


POD = {"containers", "volumes", "terminationGracePeriodSeconds", "tolerations", "nodeSelector"}
FIELDS = {
    "RayCluster": {
        *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
        *("headGroupSpec", "workerGroupSpecs"),
    },
    "RayJob": {
        *("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "backoffLimit"),
        *("ttlSecondsAfterFinished", "rayClusterSpec"),
    },
    "group": {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    },
}
"""Fields of the custom resources (`ray.io/v1`) and of pods that these files may have. The schemas
themselves are in KubeRay's Helm charts, in no package; they were compared with its types."""


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_kuberay_files_have_known_fields_only(name: str) -> None:
    """KubeRay drops a field that it does not know without a word."""
    document = next(d for d in documents(name) if d["kind"] in {"RayCluster", "RayJob"})
    spec = document["spec"]
    assert set(spec) <= FIELDS[document["kind"]]
    modes = {"K8sJobMode", "HTTPMode", "InteractiveMode"}
    assert spec.get("submissionMode", "HTTPMode") in modes
    cluster = spec.get("rayClusterSpec", spec)
    assert set(cluster) <= FIELDS["RayCluster"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= FIELDS["group"]
        assert set(group["template"]["spec"]) <= POD
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert isinstance(group.get("replicas", 0), int)


def test_the_mlflow_server_requires_passwords_and_reads_its_own_from_the_environment() -> None:
    compose = documents("mlflow/compose.yaml")[0]
    server, database = compose["services"]["mlflow"], compose["services"]["database"]
    assert "--app-name=basic-auth" in server["command"]
    assert {"MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_ARTIFACTS_DESTINATION"} <= set(
        server["environment"]
    )
    for service in (server, database):
        for name, value in service["environment"].items():
            if any(word in name for word in ("PASSWORD", "SECRET")):
                assert str(value).startswith("${"), name
    assert "ports" not in database
    assert all(str(port).startswith("127.0.0.1:") for port in server["ports"])


def test_the_mlflow_server_is_started_the_same_with_docker_and_without() -> None:
    folder = ROOT / "deploy" / "mlflow"
    server = documents("mlflow/compose.yaml")[0]["services"]["mlflow"]
    unit = (folder / "multistill-mlflow.service").read_text(encoding="utf-8")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    [settings] = re.findall(r"<<SETTINGS\n(.*?)^SETTINGS$", readme, re.MULTILINE | re.DOTALL)
    names = {line.partition("=")[0] for line in settings.splitlines()}
    assert names - {"PGPORT"} == set(server["environment"])
    [line] = re.findall(r"^ExecStart=\S+/bin/(.*)$", unit, re.MULTILINE)
    inside = ["--host=0.0.0.0" if part == "--host=127.0.0.1" else part for part in line.split()]
    assert inside == server["command"]
