"""Parts that every Kubernetes object has (k8s.io/apimachinery, meta/v1)."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Cidr = Annotated[str, Meta(max_length=43)]
"""As long as an IPv6 subnet can be: what an API field may hold before it is known to be one."""

AddressText = Annotated[str, Meta(max_length=39)]
"""As long as an IPv6 address can be: what an API field may hold before it is known to be one."""

ATOMIC = {"x-kubernetes-map-type": "atomic"}
"""For a map or struct with one writer: its keys stand as one field in managedFields, which keeps big maps cheap."""

FILLED_IN = "x-filled-in"
"""Key of the value that the API server stores for a field left out, where the type reads "" as the same."""


class ApiStruct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of all API types: immutable, camelCase on the wire, defaults left out, unknown fields ignored."""


class OwnerReference(ApiStruct, frozen=True, kw_only=True):
    """The object that this one is garbage-collected with."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(ApiStruct, frozen=True, kw_only=True):
    """metadata, as far as it is used. Times are RFC 3339 strings as the API server writes them."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    owner_references: list[OwnerReference] = []


class Condition(ApiStruct, frozen=True, kw_only=True):
    """metav1.Condition, with Harvester's lastUpdateTime beside it."""

    type: Annotated[str, Meta(min_length=1, max_length=316, description="CamelCase, unique in the list.")]
    status: Annotated[Literal["True", "False", "Unknown"], Meta(description="Whether the condition holds.")]
    reason: Annotated[str, Meta(max_length=1024, description="Why, as a CamelCase word for programs.")] = ""
    message: Annotated[str, Meta(max_length=32768, description="Why, and what to do, for people.")] = ""
    observed_generation: Annotated[
        int, Meta(ge=0, description="metadata.generation that this was found out about.")
    ] = 0
    last_transition_time: Annotated[str, Meta(description="RFC 3339; when the status last changed.")] = ""
    last_update_time: Annotated[str, Meta(description="RFC 3339; when the condition was last written.")] = ""


class KubeObject(ApiStruct, frozen=True, kw_only=True):
    """Any object: what the generic machinery (watch, cache, patches) needs of it."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name); the namespace is empty for cluster-scoped kinds."""
        return (self.metadata.namespace, self.metadata.name)


__all__ = [
    "ATOMIC",
    "FILLED_IN",
    "AddressText",
    "ApiStruct",
    "Cidr",
    "Condition",
    "KubeObject",
    "ObjectMeta",
    "OwnerReference",
]
