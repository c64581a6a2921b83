"""The Helm charts: the same objects as the overlays, every value described and checked."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.build import find
from tests.manifests.test_kustomize import MANIFESTS, render

pytestmark = pytest.mark.apiserver  # needs what `make controlplane` builds

SIDES = ("host", "guest")
LEAVE = ("--set", "agent.leave=true")
NAMESPACE = "cloudprovider-system"
CHECKSUM = "checksum/config"
KEEP = "helm.sh/resource-policy"

Json = dict[str, Any]
Named = dict[tuple[str, str, str], Json]


def helm(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([find("helm"), *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(side: str, *arguments: str | Path, namespace: str = NAMESPACE) -> "subprocess.CompletedProcess[str]":
    chart = MANIFESTS / "charts" / side
    return helm("template", f"cloudprovider-{side}", chart, "--namespace", namespace, *arguments)


def chart(side: str, *arguments: str | Path) -> list[Json]:
    values = MANIFESTS / "overlays" / "example" / side / "values.yaml"
    done = template(side, "--values", values, *arguments)
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def comparable(documents: list[Json]) -> Named:
    """By kind, namespace and name, without what each tool does in its own way: kustomize names a ConfigMap by a hash of
    what is in it, the chart puts one into the pods' annotations; neither the CRDs nor the namespace are in both."""
    found: Named = {}
    for document in documents:
        if document["kind"] in ("CustomResourceDefinition", "Namespace"):
            continue
        metadata = document["metadata"]
        if document["kind"] == "ConfigMap":
            metadata["name"] = _without_hash(metadata["name"])
            document["data"] = {key: yaml.safe_load(text) for key, text in document["data"].items()}
            document["data"].pop("host-example.yaml", None)  # the base's, which no node is called by
        if document["kind"] in ("Deployment", "DaemonSet"):
            template = document["spec"]["template"]
            annotations = template["metadata"].pop("annotations", {})
            assert annotations.keys() <= {CHECKSUM}
            (container,) = template["spec"]["containers"]
            container.setdefault("imagePullPolicy", "IfNotPresent")  # what it is for an image with a tag
            for volume in template["spec"]["volumes"]:
                if "configMap" in volume:
                    volume["configMap"]["name"] = _without_hash(volume["configMap"]["name"])
        key = (document["kind"], metadata.get("namespace", ""), metadata["name"])
        assert key not in found
        found[key] = document
    return found


def _without_hash(name: str) -> str:
    return re.sub(r"-[a-z0-9]{10}$", "", name)


@pytest.mark.parametrize("side", SIDES)
def test_both_ways_install_the_same(side: str) -> None:
    assert comparable(chart(side)) == comparable(render(MANIFESTS / "overlays" / "example" / side))


def test_both_ways_leave_the_same() -> None:
    expected = comparable(render(MANIFESTS / "overlays" / "example" / "leave"))
    assert comparable(chart("host", *LEAVE)) == expected
    (agent,) = expected["DaemonSet", NAMESPACE, "cloudprovider-agent"]["spec"]["template"]["spec"]["containers"]
    assert agent["args"][:2] == ["agent", "leave"]
    assert "livenessProbe" not in agent, "nobody answers there any more"


@pytest.mark.parametrize("side", SIDES)
def test_both_ways_are_watched_the_same(side: str) -> None:
    expected = comparable(render(MANIFESTS / "overlays" / "example" / "monitoring" / side))
    assert comparable(chart(side, "--set", "monitoring.enabled=true")) == expected
    assert {"PodMonitor", "PrometheusRule"} < {kind for kind, _, _ in expected}
    assert not {"PodMonitor", "PrometheusRule"} & {d["kind"] for d in chart(side)}


def test_both_ways_have_the_same_console(tmp_path: Path) -> None:
    """As docs/console.md says it: one line in the overlay, one value of the chart."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests", symlinks=True)
    overlay = tmp_path / "manifests" / "overlays" / "example" / "host"
    with (overlay / "kustomization.yaml").open("a") as file:
        file.write("components: [../../../components/console]\n")
    expected = comparable(render(overlay))
    assert ("Deployment", NAMESPACE, "cloudprovider-console") in expected
    assert comparable(chart("host", "--set", "console.enabled=true")) == expected


def test_leaving_gives_up_the_same_capabilities_as_serving() -> None:
    (serving,) = (d for d in chart("host") if d["kind"] == "DaemonSet")
    (left,) = (d for d in chart("host", *LEAVE) if d["kind"] == "DaemonSet")
    words = serving["spec"]["template"]["spec"]["containers"][0]["command"]
    assert " ".join(words) in left["spec"]["template"]["spec"]["containers"][0]["command"][2]


def test_the_chart_brings_the_definitions_and_never_takes_them_away() -> None:
    definitions = {d["metadata"]["name"]: d for d in chart("host") if d["kind"] == "CustomResourceDefinition"}
    for definition in definitions.values():
        assert definition["metadata"]["annotations"].pop(KEEP) == "keep", "with them go all load balancers"
    written = [yaml.safe_load(path.read_text()) for path in (MANIFESTS / "crds").glob("*.yaml")]
    for definition in written:
        definition["metadata"].setdefault("annotations", {})
    assert {d["metadata"]["name"]: d for d in written} == definitions
    none = chart("host", "--set", "crds.install=false")
    assert not [d for d in none if d["kind"] == "CustomResourceDefinition"]


@pytest.mark.parametrize("side", SIDES)
def test_pods_restart_when_their_settings_change(side: str) -> None:
    def sums(*arguments: str) -> list[str]:
        found = [d for d in chart(side, *arguments) if d["kind"] in ("Deployment", "DaemonSet")]
        return [d["spec"]["template"]["metadata"]["annotations"][CHECKSUM] for d in found]

    if side == "guest":
        assert not [d for d in chart(side) if d["kind"] == "ConfigMap"], "its settings are in the Secret"
        return
    changed = sums("--set", "controller.settings.log-level=debug", "--set", "agent.networks.host-1[0].device=br1")
    assert all(before != after for before, after in zip(sums(), changed, strict=True))


@pytest.mark.parametrize("side", SIDES)
def test_defaults_are_complete_and_linted(side: str) -> None:
    done = helm("lint", "--strict", "--namespace", NAMESPACE, MANIFESTS / "charts" / side)
    assert done.returncode == 0, done.stdout + done.stderr
    assert template(side).returncode == 0


@pytest.mark.parametrize("side", SIDES)
def test_every_value_is_described_and_checked(side: str) -> None:
    folder = MANIFESTS / "charts" / side
    text = (folder / "values.yaml").read_text()
    schema = yaml.safe_load((folder / "values.schema.json").read_text())

    def agree(values: Json, part: Json, path: str) -> None:
        assert part["additionalProperties"] is False, f"{path}: a misspelt value would pass"
        assert values.keys() == part["properties"].keys() - {"global"}, path
        for key, value in values.items():
            below = part["properties"][key]
            if isinstance(value, dict) and below.get("additionalProperties") is False and key != "resources":
                agree(value, below, f"{path}.{key}")

    agree(yaml.safe_load(text), schema, "")
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-zA-Z]", line) and not line.startswith("resources"):
            described = lines[number - 1].startswith("#") or lines[number + 1].lstrip().startswith("#")
            assert described, f"{line} is not described"


WRONG = [
    ("host", "agent.network.host-1[0].device=br0", "network"),
    ("host", "agent.networks.host-1[0].address=10.0.0.9", "address"),
    ("host", "agent.networks.host-1[0].devise=br0", "devise"),
    ("host", "agent.networks.host-1[0].address=10.0.0.9/24", "device"),
    ("host", "controller.bridgeNodePort=0", "bridgeNodePort"),
    ("host", "controller.settings.reserved-cidrs[0]=everything", "reserved-cidrs"),
    ("host", "image.repository=", "repository"),
    ("guest", "replicas=0", "replicas"),
    ("guest", "loadBalancerClass=not a class", "loadBalancerClass"),
    ("guest", "tag=1", "tag"),
]


@pytest.mark.parametrize(("side", "value", "named"), WRONG, ids=[value for _, value, _ in WRONG])
def test_a_wrong_value_is_refused_by_name(side: str, value: str, named: str) -> None:
    done = template(side, "--set", value)
    assert done.returncode != 0
    assert named in done.stderr


@pytest.mark.parametrize("side", SIDES)
def test_another_namespace_is_refused(side: str) -> None:
    done = template(side, namespace="default")
    assert done.returncode != 0
    assert f"install into the namespace {NAMESPACE}" in done.stderr


@pytest.mark.parametrize("side", SIDES)
def test_the_chart_is_of_the_programs_version(side: str) -> None:
    from cloudprovider import __version__

    about = yaml.safe_load((MANIFESTS / "charts" / side / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__
    images = [
        c["image"]
        for d in render(MANIFESTS / side)
        if d["kind"] in ("Deployment", "DaemonSet")
        for c in d["spec"]["template"]["spec"]["containers"]
    ]
    assert set(images) == {f"cloudprovider:{__version__}"}, "as make image calls it"


@pytest.mark.parametrize(("side", "programs"), [("host", 2), ("guest", 1)])
def test_traces_are_told_to_every_program(side: str, programs: int) -> None:
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.observability:4317", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    flags = [word for name, value in told.items() for word in ("--set-string", f"traces.{name}={value}")]
    found = [
        {one["name"]: one.get("value") for one in document["spec"]["template"]["spec"]["containers"][0].get("env", [])}
        for document in chart(side, *flags)
        if document["kind"] in ("Deployment", "DaemonSet")
    ]
    assert len(found) == programs
    assert all(told.items() <= environment.items() for environment in found)
    assert template(side, "--set", "traces.PATH=/tmp").returncode != 0
