"""The CustomResourceDefinitions: fresh, structural, explained."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudprovider.cli.crds import DEFINITIONS, Definition, manifest, render

CRDS = Path(__file__).parents[2] / "manifests" / "crds"

each_definition = pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.resource.kind)


def schema_of(definition: Definition) -> dict[str, Any]:
    schema: dict[str, Any] = manifest(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from walk(schema[key], f"{path}[]")


def test_files_are_what_the_types_say() -> None:
    want = dict(render())
    have = {path.name: path.read_text() for path in CRDS.glob("*.yaml") if path.name != "kustomization.yaml"}
    assert have == want, "manifests/crds is out of date: run `cloudprovider crds --write manifests/crds`"


@each_definition
def test_schema_is_structural(definition: Definition) -> None:
    for path, node in walk(schema_of(definition)):
        assert node.get("type"), f"{path} has no type"
        assert not node.keys() & {"$ref", "anyOf", "title"}, path


@each_definition
def test_every_field_is_explained(definition: Definition) -> None:
    own = {
        path: node
        for path, node in walk(schema_of(definition))
        if path and not path.endswith("[]") and path.split(".")[1] in ("spec", "status")
    }
    assert own
    assert [path for path, node in own.items() if not node.get("description")] == []
    assert [path for path, node in own.items() if "``" in node["description"]] == []


@each_definition
def test_conditions_merge_by_type(definition: Definition) -> None:
    """Several field managers write conditions by server-side apply; an atomic list would be taken from the others."""
    status = schema_of(definition)["properties"].get("status")
    if status is None:
        assert definition.resource.kind == "IPBlock"
        return
    if definition.resource.kind in ("BGPPeer", "BGPAdvertisement"):  # each host writes an entry of its own
        (entries,) = status["properties"].values()
        assert entries["x-kubernetes-list-type"] == "map"
        assert entries["x-kubernetes-list-map-keys"] == ["node"]
        return
    conditions = status["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


@each_definition
def test_no_default_in_a_status(definition: Definition) -> None:
    """A default there would give every writer's apply fields that it never set."""
    status = schema_of(definition)["properties"].get("status", {"type": "object"})
    assert [path for path, node in walk(status) if "default" in node] == []


@pytest.mark.parametrize(
    ("kind", "columns", "short_names"),
    [
        ("LoadBalancer", ["DESCRIPTION", "WORKLOADTYPE", "IPAM", "ADDRESS", "AGE"], ["lb", "lbs"]),
        ("IPPool", ["DESCRIPTION", "RANGES", "PRIORITY", "AGE"], ["pool", "pools"]),
    ],
)
def test_shows_as_harvester_does(kind: str, columns: list[str], short_names: list[str]) -> None:
    (definition,) = (d for d in DEFINITIONS if d.resource.kind == kind)
    spec = manifest(definition)["spec"]
    assert [c["name"] for c in spec["versions"][0]["additionalPrinterColumns"] if not c.get("priority")] == columns
    assert spec["names"]["shortNames"] == short_names


def test_text_is_yaml_of_one_definition() -> None:
    for name, text in render():
        document = yaml.safe_load(text)
        assert document["kind"] == "CustomResourceDefinition"
        assert name == "{group}_{names[plural]}.yaml".format(**document["spec"])
        assert "&id" not in text
