"""What is deployed is valid, and names only what exists."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from medha_jax.cli import app
from medha_jax.config import load_mesh
from medha_jax.engine import Load
from medha_jax.server.prometheus import Metrics
from medha_jax.server.vitals import LIVENESS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OBJECTS = [
    pytest.param(manifest, entry, id=f"{manifest.stem}-{entry['kind']}-{entry['metadata']['name']}")
    for manifest in MANIFESTS
    for entry in yaml.safe_load_all(manifest.read_text())
]
VERSION = "1.31.0"


@pytest.mark.parametrize(("manifest", "entry"), OBJECTS)
def test_manifests_follow_the_schema_of_kubernetes(manifest: Path, entry: dict[str, Any]) -> None:
    kubernetes_validate.validate(entry, VERSION, strict=True)


def test_the_schema_refuses_what_is_wrong() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def containers(manifest: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every container of a manifest, with its pod."""
    for entry in yaml.safe_load_all(manifest.read_text()):
        if "template" in entry["spec"]:
            pod = entry["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield pod, container


def commands(container: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The medha-jax commands that a container may run, with their options."""
    if "command" not in container:
        name, *options = container["args"]
        return [(name, options)]
    (script,) = container["args"]
    script = script.replace("\\\n", " ")
    (shared,) = re.findall(r'mesh="([^"]*)"', script)
    found = re.findall(r"exec medha-jax (\w+) ([^\n]*)", script.replace("$mesh", " ".join(shared.split())))
    return [(name, options.split()) for name, options in found]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_commands_in_manifests_are_those_of_medha_jax(manifest: Path) -> None:
    known: Any = typer.main.get_command(app)
    for pod, container in containers(manifest):
        stated = commands(container)
        assert [name for name, _ in stated] in (["serve"], ["serve", "worker"])
        for name, options in stated:
            allowed = {option for parameter in known.commands[name].params for option in parameter.opts}
            values = dict(option.partition("=")[::2] for option in options)
            assert values.keys() <= allowed
            load_mesh(values["--mesh"])
            if name == "serve":
                assert pod["terminationGracePeriodSeconds"] > float(values["--drain-seconds"])
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                assert ports["grpc"] == int(values["--port"])
                assert ports["metrics"] == int(values["--metrics-port"])
                assert values["--metrics-host"] == values["--host"], "Prometheus runs elsewhere"
            if "--processes" in values:
                mesh = load_mesh(values["--mesh"])
                devices = container["resources"]["limits"]["nvidia.com/gpu"] * int(values["--processes"])
                assert devices == mesh.tp * mesh.spp * mesh.kvp
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)
def test_probes_tell_readiness_from_liveness(manifest: Path) -> None:
    """A server that drains, or loads, is not ready, and must not be killed for that."""
    for _, container in containers(manifest):
        asked = {}
        for kind in ("readiness", "liveness"):
            probe = container[f"{kind}Probe"]
            if "grpc" in probe:
                asked[kind] = probe["grpc"].get("service", "")
            else:
                (name,) = re.findall(r"HealthCheckRequest\((?:service='(\w*)')?\)", probe["exec"]["command"][-1])
                asked[kind] = name
        assert asked == {"readiness": "", "liveness": LIVENESS}
        patience = container["livenessProbe"]
        assert patience["periodSeconds"] * patience["failureThreshold"] >= 60
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 600


def test_as_many_pods_as_processes() -> None:
    (pods,) = (
        entry
        for entry in yaml.safe_load_all((DEPLOY / "kubernetes" / "many-hosts.yaml").read_text())
        if entry["kind"] == "StatefulSet"
    )
    (container,) = pods["spec"]["template"]["spec"]["containers"]
    for _, options in commands(container):
        assert f"--processes={pods['spec']['replicas']}" in options
        assert f"--coordinator={pods['metadata']['name']}-0.{pods['spec']['serviceName']}:9400" in options


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    metrics = Metrics()
    nothing = dict.fromkeys(("running", "waiting", "waiting_tokens"), 0)
    metrics.watch(lambda: Load(**nothing, slots=1, total_pages=1, free_pages=(1,), cached_pages=(0,)))
    exported = set[str]()
    for family in metrics.registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        exported |= {family.name + suffix for suffix in suffixes}
    board = json.loads((DEPLOY / "grafana" / "medha.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"medha_\w+", query)}
    assert asked <= exported
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "job"}
    for query in queries:
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
    # every metric of the scheduler's own decisions has its panel
    own = {f"medha_{name}" for name in ("chunk_tokens", "first_schedule_relative_slack", "tick_padding_share")}
    assert own <= {re.sub("_(bucket|sum|count)$", "", name) for name in asked}


def test_the_image_copies_and_installs_what_exists() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in lines} == known
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, rest in lines:
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
    assert {"cuda12", "cuda13"} <= project["optional-dependencies"].keys()
    of = dict(lines)
    assert json.loads(of["ENTRYPOINT"]) == ["medha-jax"]
    assert "medha-jax" in project["scripts"]
    assert json.loads(of["CMD"]) == ["serve"]
    assert int(of["USER"]) > 0, "not root"
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for name, rest in lines if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]}
    assert copied == kept
