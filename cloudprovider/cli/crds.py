"""The CustomResourceDefinitions, generated from the types that the code decodes with (``cloudprovider crds``)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import yaml

from cloudprovider.cli.schema import Schema, structural
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.kube.api import Resource
from cloudprovider.kube.resources import BGPADVERTISEMENTS, BGPPEERS, GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS

_HEADER: Final = "# Generated from the types in cloudprovider/core/api by `cloudprovider crds`; not to be edited.\n"


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``; ``wide``: only with ``-o wide``."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a CustomResourceDefinition says beside its schema."""

    resource: Resource[Any]
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        """The object's name, which the API server wants to be plural.group."""
        return f"{self.resource.plural}.{self.resource.group}"

    @property
    def filename(self) -> str:
        """Where it stands in manifests/crds."""
        return f"{self.resource.group}_{self.resource.plural}.yaml"


def _condition(type_: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{type_}")].{field}'


_NOT_UP: Final = '.status.sessions[?(@.state!="Established")]'
"""Of several that match, a column shows the first."""
_AGE: Final = Column("AGE", ".metadata.creationTimestamp", "date")

DEFINITIONS: Final = (
    Definition(
        resource=LOADBALANCERS,
        short_names=("lb", "lbs"),
        columns=(
            Column("DESCRIPTION", ".spec.description"),
            Column("WORKLOADTYPE", ".spec.workloadType"),
            Column("IPAM", ".spec.ipam"),
            Column("ADDRESS", ".status.address"),
            _AGE,
            Column("READY", _condition("Ready"), wide=True),
            Column("REASON", _condition("Ready", "reason"), wide=True),
            Column("POOL", ".status.allocatedAddress.ipPool", wide=True),
            Column("HOLDER", ".status.holder.node", wide=True),
            Column("MODE", ".status.holder.mode", wide=True),
        ),
    ),
    Definition(
        resource=IPPOOLS,
        short_names=("pool", "pools"),
        columns=(
            Column("DESCRIPTION", ".spec.description"),
            Column("RANGES", ".spec.ranges"),
            Column("PRIORITY", ".spec.selector.priority"),
            _AGE,
            Column("NETWORK", ".spec.selector.network", wide=True),
            Column("TOTAL", ".status.total", "integer", wide=True),
            Column("AVAILABLE", ".status.available", "integer", wide=True),
            Column("READY", _condition("Ready"), wide=True),
        ),
    ),
    Definition(
        resource=IPBLOCKS,
        short_names=("ipb",),
        columns=(Column("POOL", ".spec.pool"), Column("FIRST", ".spec.first"), _AGE),
    ),
    Definition(
        resource=GUESTCLUSTERS,
        short_names=("gcl",),
        columns=(
            Column("DESCRIPTION", ".spec.description"),
            Column("LASTSEEN", ".status.lastSeenTime", "date"),
            _AGE,
            Column("INVENTORY", ".status.inventory.services", "integer", wide=True),
            Column("VERSION", ".status.guestVersion", wide=True),
            Column("CLUSTERUID", ".status.clusterUid", wide=True),
        ),
    ),
    Definition(
        resource=BGPPEERS,
        short_names=("bgpp",),
        columns=(
            Column("ADDRESS", ".spec.peerAddress"),
            Column("ASN", ".spec.peerASN", "integer"),
            Column("NETWORK", ".spec.network"),
            Column("NOTUPAT", f"{_NOT_UP}.node"),
            _AGE,
            Column("STATE", f"{_NOT_UP}.state", wide=True),
            Column("ERROR", f"{_NOT_UP}.error", wide=True),
        ),
    ),
    Definition(
        resource=BGPADVERTISEMENTS,
        short_names=("bgpa",),
        columns=(
            Column("POOLS", ".spec.ipPools"),
            Column("PEERS", ".spec.peers"),
            Column("COMMUNITIES", ".spec.communities"),
            _AGE,
            Column("PROBLEM", ".status.hosts[?(@.problem)].problem", wide=True),
        ),
    ),
)


def manifest(definition: Definition) -> Schema:
    """Return the CustomResourceDefinition object."""
    resource = definition.resource
    schema = structural(resource.type)
    for name in KubeObject.__struct_encode_fields__:  # the API server's own; anything said here it would refuse
        schema["properties"].pop(name)
    has_status = "status" in schema["properties"]
    schema["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    } | schema["properties"]
    version: Schema = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in definition.columns],
        "schema": {"openAPIV3Schema": schema},
    }
    if has_status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": definition.name},
        "spec": {
            "group": resource.group,
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": list(definition.short_names),
            },
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [version],
        },
    }


def render() -> Iterator[tuple[str, str]]:
    """Yield (file name, YAML text) of every definition."""
    for definition in DEFINITIONS:
        yield definition.filename, _HEADER + dump(manifest(definition))


def dump(*documents: Schema) -> str:
    """YAML as people write it: keys in the order given, and no anchors (a round trip makes every part a copy)."""
    copies = [msgspec.json.decode(msgspec.json.encode(document)) for document in documents]
    return yaml.safe_dump_all(copies, sort_keys=False, width=120, allow_unicode=True)


def _column(column: Column) -> Schema:
    entry: Schema = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return entry | {"priority": 1} if column.wide else entry
