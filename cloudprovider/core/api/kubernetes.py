"""Kubernetes' own objects (core/v1, discovery.k8s.io/v1, coordination.k8s.io/v1), as far as they are read."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloudprovider.core.api.meta import ApiStruct, Condition, KubeObject

SERVICE_FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
EXCLUDE_LABELS = frozenset(
    {
        "node.kubernetes.io/exclude-from-external-load-balancers",  # KEP-1143
        "service.kubernetes.io/exclude-from-external-load-balancers",
    }
)
DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


class ServicePort(ApiStruct, frozen=True, kw_only=True):
    """spec.ports[] of a Service."""

    name: str = ""
    protocol: str = "TCP"
    app_protocol: str = ""
    port: int
    target_port: int | str = 0
    node_port: int = 0


class ClientIPConfig(ApiStruct, frozen=True, kw_only=True):
    """spec.sessionAffinityConfig.clientIP."""

    timeout_seconds: int = 10800


class SessionAffinityConfig(ApiStruct, frozen=True, kw_only=True):
    """spec.sessionAffinityConfig."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(ApiStruct, frozen=True, kw_only=True):
    """spec of a Service."""

    type: str = "ClusterIP"
    selector: dict[str, str] = {}
    ports: list[ServicePort] = []
    load_balancer_ip: str = msgspec.field(default="", name="loadBalancerIP")
    load_balancer_class: str = ""
    load_balancer_source_ranges: list[str] = []
    external_traffic_policy: str = "Cluster"
    health_check_node_port: int = 0
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    ip_families: list[str] = []
    ip_family_policy: str = "SingleStack"
    allocate_load_balancer_node_ports: bool = True
    publish_not_ready_addresses: bool = False


class PortStatus(ApiStruct, frozen=True, kw_only=True):
    """status.loadBalancer.ingress[].ports[]: ``error`` is a CamelCase word or "domain/Word"."""

    port: int
    protocol: str
    error: str | None = None


class LoadBalancerIngress(ApiStruct, frozen=True, kw_only=True):
    """status.loadBalancer.ingress[]."""

    ip: str = ""
    hostname: str = ""
    ip_mode: str | None = None
    ports: list[PortStatus] = []


class ServiceLoadBalancerStatus(ApiStruct, frozen=True, kw_only=True):
    """status.loadBalancer."""

    ingress: list[LoadBalancerIngress] = []


class ServiceStatus(ApiStruct, frozen=True, kw_only=True):
    """status of a Service."""

    load_balancer: ServiceLoadBalancerStatus = msgspec.field(default_factory=ServiceLoadBalancerStatus)
    conditions: list[Condition] = []


class Service(KubeObject, frozen=True, kw_only=True):
    """core/v1 Service."""

    spec: ServiceSpec = msgspec.field(default_factory=ServiceSpec)
    status: ServiceStatus = msgspec.field(default_factory=ServiceStatus)


class EndpointConditions(ApiStruct, frozen=True, kw_only=True):
    """Null means unknown, which is to be read as ready (discovery/v1)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(ApiStruct, frozen=True, kw_only=True):
    """One endpoint of a slice."""

    addresses: list[str] = []
    conditions: EndpointConditions = msgspec.field(default_factory=EndpointConditions)
    node_name: str = ""


class EndpointSlice(KubeObject, frozen=True, kw_only=True):
    """discovery.k8s.io/v1 EndpointSlice."""

    address_type: str = "IPv4"
    endpoints: list[Endpoint] | None = None


class NodeAddress(ApiStruct, frozen=True, kw_only=True):
    """status.addresses[] of a Node."""

    type: str
    address: str


class Taint(ApiStruct, frozen=True, kw_only=True):
    """spec.taints[] of a Node."""

    key: str
    value: str = ""
    effect: str = ""


class NodeSpec(ApiStruct, frozen=True, kw_only=True):
    """spec of a Node."""

    pod_cidrs: list[str] = msgspec.field(default_factory=list, name="podCIDRs")
    provider_id: str = msgspec.field(default="", name="providerID")
    taints: list[Taint] = []
    unschedulable: bool = False


class NodeCondition(ApiStruct, frozen=True, kw_only=True):
    """status.conditions[] of a Node; a time that nobody set is null there."""

    type: str
    status: str
    last_transition_time: str | None = None


class NodeStatus(ApiStruct, frozen=True, kw_only=True):
    """status of a Node."""

    addresses: list[NodeAddress] = []
    conditions: list[NodeCondition] = []


class Node(KubeObject, frozen=True, kw_only=True):
    """core/v1 Node."""

    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)


class Namespace(KubeObject, frozen=True, kw_only=True):
    """core/v1 Namespace."""


class LeaseSpec(ApiStruct, frozen=True, kw_only=True):
    """spec of a Lease; times are RFC 3339 with microseconds."""

    holder_identity: str = ""
    lease_duration_seconds: Annotated[int, Meta(ge=0)] = 0
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int = 0


class Lease(KubeObject, frozen=True, kw_only=True):
    """coordination.k8s.io/v1 Lease."""

    spec: LeaseSpec = msgspec.field(default_factory=LeaseSpec)


class ObjectReference(ApiStruct, frozen=True, kw_only=True):
    """What an event is about."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""


class EventSource(ApiStruct, frozen=True, kw_only=True):
    """Who says it."""

    component: str = ""


class Event(KubeObject, frozen=True, kw_only=True):
    """core/v1 Event, as ``kubectl describe`` shows it. The API server sets no defaults: what is to be shown is sent."""

    involved_object: ObjectReference = msgspec.field(default_factory=ObjectReference)
    reason: str = ""
    message: str = ""
    type: Literal["Normal", "Warning", ""] = ""
    source: EventSource = msgspec.field(default_factory=EventSource)
    count: int = 0
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    reporting_component: str = ""
    reporting_instance: str = ""


class Secret(KubeObject, frozen=True, kw_only=True):
    """core/v1 Secret; the values are in base64."""

    type: str = ""
    data: dict[str, str] = {}
