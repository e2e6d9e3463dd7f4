"""The deployment's files hold together: what they name exists, what must be forbidden is, and Kubernetes takes them."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from libs.common import keys
from libs.common.contracts.base import Queue
from libs.common.keyring import load_keyring
from libs.common.settings import CommonSettings, WorkerSettings

ROOT: Final = Path(__file__).resolve().parents[2]
K8S: Final = ROOT / "deploy" / "k8s"
KUBERNETES_VERSION: Final = "1.34"
OVERLAYS: Final = ("dev", "production")
SERVICES: Final = sorted(path.parent.name for path in (ROOT / "services").glob("*/__init__.py"))
STORES: Final = {"broker", "cache", "qdrant", "postgres"}
# Read by libraries, not by our settings.
LIBRARY_VARIABLES: Final = re.compile(r"(OTEL|PYTHON)[A-Z_]*")
WORKLOADS: Final = ("Deployment", "StatefulSet", "Job")

Manifest = dict[str, Any]


def _compose() -> Manifest:
    content: Manifest = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


@cache
def _rendered(overlay: str) -> list[Manifest]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def _of_kind(overlay: str, *kinds: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in _rendered(overlay) if each["kind"] in kinds}


def _pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def _settings(service: str) -> type[CommonSettings]:
    if service == "migrate":
        return CommonSettings
    module = importlib.import_module(f"services.{service}.settings")
    (found,) = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, CommonSettings) and each.__module__ == module.__name__
    ]
    return found


def _unknown_variables(service: str, names: Iterator[str] | list[str]) -> list[str]:
    fields = {name.upper() for name in _settings(service).model_fields}
    return [name for name in names if name not in fields and not LIBRARY_VARIABLES.fullmatch(name)]


def _references(container: Manifest) -> Iterator[tuple[str, str, str]]:
    """Kind, name and key of every config map and secret that must be there for a container to start."""
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            if field in source and not source[field].get("optional"):
                yield kind, source[field]["name"], source[field]["key"]


@pytest.mark.parametrize("path", sorted(K8S.rglob("*.yaml")), ids=lambda path: str(path.relative_to(K8S)))
def test_every_manifest_is_yaml_of_some_kind(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    assert all(document["apiVersion"] and document["kind"] for document in documents)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_every_object(overlay: str) -> None:
    for each in _rendered(overlay):
        kubernetes_validate.validate(each, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_service_is_deployed_and_scaled(overlay: str) -> None:
    assert sorted(_of_kind(overlay, "Deployment")) == SERVICES
    targets = [each["spec"]["scaleTargetRef"]["name"] for each in _of_kind(overlay, "HorizontalPodAutoscaler").values()]
    assert sorted(targets) == SERVICES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_hardened(overlay: str) -> None:
    for name, workload in _of_kind(overlay, *WORKLOADS).items():
        pod = _pod(workload)
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        if workload["kind"] != "StatefulSet":
            assert pod["securityContext"]["runAsUser"] == 10001, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_are_probed_and_have_time_to_drain(overlay: str) -> None:
    drain_seconds: float = WorkerSettings.model_fields["drain_seconds"].default
    for name, workload in _of_kind(overlay, "Deployment").items():
        pod = _pod(workload)
        (container,) = pod["containers"]
        (port,) = container["ports"]
        assert port["containerPort"] == (8080 if name == "gateway" else 9100)
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
        pause_seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > pause_seconds + drain_seconds + 10
        assert {each["topologyKey"] for each in pod["topologySpreadConstraints"]} == {
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_name_only_variables_that_settings_know(overlay: str) -> None:
    for name, workload in _of_kind(overlay, "Deployment", "Job").items():
        (container,) = _pod(workload)["containers"]
        assert _unknown_variables(name, [variable["name"] for variable in container["env"]]) == []


def test_a_service_is_given_its_own_keyring_and_no_other() -> None:
    for name, workload in _of_kind("production", "Deployment").items():
        secrets = [volume["secret"]["secretName"] for volume in _pod(workload)["volumes"] if "secret" in volume]
        assert secrets == [f"docent-keyring-{name}"]


def test_what_dev_refers_to_is_there() -> None:
    held = {
        (each["kind"], each["metadata"]["name"], key)
        for each in _rendered("dev")
        if each["kind"] in ("ConfigMap", "Secret")
        for key in each["data"]
    }
    for workload in _of_kind("dev", "Deployment", "Job").values():
        (container,) = _pod(workload)["containers"]
        assert set(_references(container)) <= held


def test_production_holds_no_secret_and_a_value_for_every_setting() -> None:
    assert not _of_kind("production", "Secret")
    (config,) = _of_kind("production", "ConfigMap").values()
    for workload in _of_kind("production", "Deployment", "Job").values():
        (container,) = _pod(workload)["containers"]
        asked = {(name, key) for kind, name, key in _references(container) if kind == "ConfigMap"}
        assert asked <= {(config["metadata"]["name"], key) for key in config["data"]}


def test_compose_runs_the_services_and_their_stores() -> None:
    assert _compose()["services"].keys() == {*SERVICES, "migrate", *STORES}


def test_compose_names_only_variables_that_settings_know() -> None:
    services = _compose()["services"]
    for name in (*SERVICES, "migrate"):
        assert _unknown_variables(name, list(services[name]["environment"])) == [], name


def test_compose_publishes_the_gateway_alone_and_lets_services_drain() -> None:
    drain_seconds: float = WorkerSettings.model_fields["drain_seconds"].default
    services = _compose()["services"]
    assert [name for name, each in services.items() if "ports" in each] == ["gateway"]
    for name in SERVICES:
        assert services[name]["read_only"] is True
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain_seconds
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert services[name]["secrets"] == [{"source": f"keyring-{name}", "target": "keyring"}]


def test_compose_has_no_password_of_its_own_and_the_example_names_each_variable() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = dict(re.findall(r"\$\{(\w+)(:\?|:-)?", text))
    example = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used.keys() == example.keys()
    secret = {name for name in used if re.search(r"PASSWORD|API_KEY", name)}
    assert {name for name in secret if used[name] != ":?"} == set()
    assert {name for name in secret if example[name]} == set()
    for service in _compose()["services"].values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|API_KEY|AUTH", name):
                assert re.fullmatch(r"\$\{\w+:\?\}", value), name
            assert "@" not in value or re.search(r":\$\{\w+:\?\}@", value), name


def test_the_dockerfile_has_a_stage_for_every_service() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (?:runtime|worker) AS (\w+)$", text, re.MULTILINE)
    assert sorted(set(stages) - {"worker"}) == SERVICES
    assert sorted(re.findall(r'^CMD \["services\.(\w+)\.main"\]$', text, re.MULTILINE)) == SERVICES
    (listed,) = re.findall(r"^# SERVICE is one of: (.+)$", text, re.MULTILINE)
    assert sorted(listed.split()) == SERVICES
    assert text.endswith("\nFROM ${SERVICE}\n")


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout


def test_the_documented_keyrings_serve_what_the_code_seals(tmp_path: Path) -> None:
    (commands,) = re.findall(r"## Keyrings.*?```sh\n(.*?)```", (ROOT / "deploy/README.md").read_text(), re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, env={"PATH": path, "PYTHONPATH": str(ROOT)}, timeout=60, check=True
    )
    for service in SERVICES:
        keyring = load_keyring(text=None, file=tmp_path / f".local/keyrings/{service}.json")
        code = "".join(source.read_text() for source in (ROOT / "services" / service).rglob("*.py"))
        named = {getattr(keys, name) for name in re.findall(r"keys\.([A-Z_]+_PURPOSE)", code)}
        own_queues = (
            {keys.queue_purpose(Queue(service))} if service != "gateway" else set(map(keys.queue_purpose, Queue))
        )
        assert named | own_queues | {keys.REPLIES_PURPOSE} <= keyring.purposes.keys()
