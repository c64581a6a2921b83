"""LoadBalancer, ``loadbalancer.harvesterhci.io/v1beta1``: Harvester's fields plus ours.

Written by: the bridge (spec of ``workloadType: cluster``), users (``vm``); status by the host controller
(addresses, ``backendServers``, what ``backends`` are, ``Allocated``) and by the agent that owns the address
(``holder``, ``lease``, ``foreignAddresses``, the ``backends``' health, ``Leased``, ``Programmed``, ``Ready``).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloudprovider.core.api.meta import ATOMIC, FILLED_IN, AddressText, ApiStruct, Cidr, Condition, KubeObject

Port = Annotated[int, Meta(ge=1, le=65535)]
Protocol = Literal["TCP", "UDP"]
IPFamily = Literal["IPv4", "IPv6"]

CLUSTER_LABEL = "cloudprovider.harvesterhci.io/cluster"
SERVICE_NAMESPACE_LABEL = "cloudprovider.harvesterhci.io/serviceNamespace"
SERVICE_NAME_LABEL = "cloudprovider.harvesterhci.io/serviceName"

# Harvester's own annotations on a LoadBalancer: what the pool selection reads.
NETWORK_ANNOTATION = "loadbalancer.harvesterhci.io/network"
PROJECT_ANNOTATION = "loadbalancer.harvesterhci.io/project"
NAMESPACE_ANNOTATION = "loadbalancer.harvesterhci.io/namespace"
CLUSTER_ANNOTATION = "loadbalancer.harvesterhci.io/cluster"
TRACE_ANNOTATION = "cloudprovider.harvesterhci.io/traceparent"
"""The trace of the change that the bridge has written last, where it traces (:mod:`cloudprovider.core.tracing`)."""

MAX_LISTENERS = 250
MAX_SOURCE_RANGES = 1000
"""Bounds of one load balancer: what the API server's rules on these lists may cost sets the first."""

MAX_BACKENDS = 1000
"""The list has room for twice as many: the agent may speak yet of those that the controller has just dropped."""

MAX_HEALTH_HISTORY = 10

DRAIN_SECONDS, MAX_DRAIN_SECONDS = 300, 86400

VIP_ON_LOOPBACK_ANNOTATION = "loadbalancer.harvesterhci.io/vip-on-loopback"
"""On a virtual machine's instance: "true" where it carries the addresses of its load balancers on its loopback, so
that frames may go to it unchanged (mode dsr)."""

FINALIZER = "loadbalancer.harvesterhci.io/address-release"


class Listener(ApiStruct, frozen=True, kw_only=True):
    """One port of the address. ``backendPort``: the node port (cluster) or the machine's port (vm).

    A cluster's listener has no ``backendPort`` when its Service sets ``allocateLoadBalancerNodePorts: false``.
    """

    name: Annotated[str, Meta(max_length=63, description="Unique among the listeners, or empty.")] = ""
    port: Annotated[Port, Meta(description="The address's port.")]
    protocol: Annotated[Protocol, Meta(description="The transport protocol.")] = "TCP"
    backend_port: Annotated[Port | None, Meta(description="Node port (cluster), or the machine's port (vm).")] = None


class HealthCheck(ApiStruct, frozen=True, kw_only=True):
    """How backends are checked; the defaults are those of Harvester's documentation."""

    port: Annotated[
        Port | None,
        Meta(
            description="Of the backends; for virtual machines the backendPort of a TCP listener, where there is one."
            " Without it nothing is checked."
        ),
    ] = None
    success_threshold: Annotated[
        int, Meta(ge=1, le=100, description="So many successes in a row make a backend ready.")
    ] = 1
    failure_threshold: Annotated[
        int, Meta(ge=1, le=100, description="So many failures in a row take a backend out.")
    ] = 3
    period_seconds: Annotated[int, Meta(ge=1, le=3600, description="Seconds from one check to the next.")] = 5
    timeout_seconds: Annotated[int, Meta(ge=1, le=3600, description="Seconds until a check has failed.")] = 3
    protocol: Annotated[
        Literal["TCP", "HTTP", "HTTPS", "GRPC", "GRPCS"],
        Meta(
            description="TCP: a connection comes about. HTTP, HTTPS: a GET is answered with an expected code."
            " GRPC, GRPCS (over TLS): the standard health service says SERVING."
        ),
    ] = "TCP"
    path: Annotated[
        str,
        Meta(max_length=2048, pattern="^(/[!-~]*)?$", description="HTTP, HTTPS: what is asked for; empty: /."),
    ] = ""
    host: Annotated[
        str,
        Meta(
            max_length=253,
            pattern=r"^[A-Za-z0-9.:-]*$",
            description="The host asked for, and the name in its certificate; empty: the address. Not with TCP.",
        ),
    ] = ""
    expected_codes: Annotated[
        list[Annotated[str, Meta(max_length=7, pattern=r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?$")]],
        Meta(
            max_length=16,
            description='HTTP, HTTPS: the codes of a success, such as "200" or "200-299"; empty: 200-399.'
            " A redirect is not followed.",
        ),
    ] = []
    verify_certificate: Annotated[
        bool, Meta(description="HTTPS, GRPCS: whether the certificate must be valid for the host.")
    ] = False
    certificate_authority: Annotated[
        str,
        Meta(
            max_length=65536,
            description="HTTPS, GRPCS: who may have signed it, in PEM; empty: those of the agent's system.",
        ),
    ] = ""
    grpc_service: Annotated[
        str, Meta(max_length=253, description="GRPC, GRPCS: the service asked about; empty: the server as a whole.")
    ] = ""
    failed_connections: Annotated[
        Literal["Keep", "Reset"],
        Meta(description="What becomes of TCP connections to a backend that fails."),
    ] = "Keep"


class ServiceReference(ApiStruct, frozen=True, kw_only=True):
    """The guest's Service that a cluster load balancer stands for: its identity, compared, never overwritten."""

    namespace: Annotated[str, Meta(min_length=1, max_length=63, description="Namespace in the guest cluster.")]
    name: Annotated[str, Meta(min_length=1, max_length=63, description="Name in the guest cluster.")]
    uid: Annotated[str, Meta(min_length=1, max_length=64, description="UID of the Service.")]
    cluster_uid: Annotated[str, Meta(max_length=64, description="UID of the guest's kube-system namespace.")] = ""


class LoadBalancerSpec(ApiStruct, frozen=True, kw_only=True):
    """What is wanted."""

    description: Annotated[str, Meta(max_length=1024, description="For people.")] = ""
    workload_type: Annotated[
        Literal["vm", "cluster", ""],
        Meta(
            description="Virtual machines chosen by label, or a guest cluster's Service. Empty means vm. Immutable.",
            extra_json_schema={FILLED_IN: "vm"},
        ),
    ] = ""
    ipam: Annotated[
        Literal["pool", "dhcp", ""],
        Meta(description="Where addresses come from. Empty means pool.", extra_json_schema={FILLED_IN: "pool"}),
    ] = ""
    ip_pool: Annotated[str, Meta(max_length=253, description="A pool by name; empty: chosen by selector.")] = ""
    listeners: Annotated[
        list[Listener], Meta(max_length=MAX_LISTENERS, description="The ports; each protocol and port once.")
    ] = []
    backend_server_selector: Annotated[
        dict[str, list[str]],
        Meta(
            max_length=64,
            description="A virtual machine matches when, for every key, its label's value is in the list.",
        ),
    ] = {}
    health_check: Annotated[
        HealthCheck | None, Meta(description="Check of the backends; without it all count as ready.")
    ] = None

    service: Annotated[
        ServiceReference | None,
        Meta(description="The guest cluster's Service that this stands for; the bridge writes it."),
    ] = None
    primary_service: Annotated[
        str,
        Meta(max_length=127, description='"namespace/name" of the guest cluster\'s Service whose addresses it shares.'),
    ] = ""
    dhcp_hostname: Annotated[
        str, Meta(max_length=253, description="Host name told to the DHCP server (option 12).")
    ] = ""
    addresses: Annotated[list[AddressText], Meta(max_length=2, description="Addresses asked for, one a family.")] = []
    ip_families: Annotated[
        list[IPFamily], Meta(max_length=2, description="Families wanted, the first one first; empty: the pool's.")
    ] = []
    ip_family_policy: Annotated[
        Literal["SingleStack", "PreferDualStack", "RequireDualStack"],
        Meta(description="As in a Service: one family, two where possible, or two."),
    ] = "SingleStack"
    mode: Annotated[
        Literal["auto", "dsr", "nat"],
        Meta(
            description="dsr: frames go to a node unchanged; nat: to a node's address and port;"
            " auto: dsr where all nodes stand on the address's network, else nat."
        ),
    ] = "auto"
    external_traffic_policy: Annotated[
        Literal["Cluster", "Local"], Meta(description="As in a Service: Local sends only to nodes with endpoints.")
    ] = "Cluster"
    endpoint_nodes: Annotated[
        list[str], Meta(max_length=5000, description="Policy Local: the nodes with endpoints to send to.")
    ] = []
    health_check_node_port: Annotated[
        Port | None, Meta(description="Policy Local: where a node answers whether it has endpoints.")
    ] = None
    session_affinity: Annotated[
        Literal["None", "ClientIP"], Meta(description="ClientIP: one client always reaches the same node.")
    ] = "None"
    session_affinity_timeout_seconds: Annotated[
        int, Meta(ge=1, le=86400, description="Seconds that an idle client is remembered.")
    ] = 10800
    drain_seconds: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_DRAIN_SECONDS,
            description="Seconds that connections to a node which has left may go on before they are reset.",
        ),
    ] = DRAIN_SECONDS
    source_ranges: Annotated[
        list[Cidr], Meta(max_length=MAX_SOURCE_RANGES, description="Clients allowed, as CIDRs; empty allows all.")
    ] = []


class AllocatedAddress(ApiStruct, frozen=True, kw_only=True):
    """Harvester's record of the allocation (first address only)."""

    ip_pool: Annotated[str, Meta(description="The pool that it is from.")] = ""
    ip: Annotated[str, Meta(description="The address.")] = ""
    mask: Annotated[str, Meta(description="The subnet's mask, for example 255.255.255.0.")] = ""
    gateway: Annotated[str, Meta(description="The subnet's gateway.")] = ""


class Address(ApiStruct, frozen=True, kw_only=True):
    """One address that this load balancer has, with all that an agent needs to bring it up."""

    ip: Annotated[str, Meta(description="The address.")]
    ip_pool: Annotated[str, Meta(description="The pool that it is from; empty: DHCP.")] = ""
    prefix_length: Annotated[int, Meta(ge=0, le=128, description="Of the subnet that the address is in.")]
    gateway: Annotated[str, Meta(description="The subnet's gateway; empty: none.")] = ""
    network: Annotated[str, Meta(description='"namespace/name" of the network; empty is the management network.')] = ""


class Holder(ApiStruct, frozen=True, kw_only=True):
    """The agent that owns the addresses and has programmed them."""

    node: Annotated[str, Meta(description="The host's name.")]
    generation: Annotated[int, Meta(description="spec generation that the kernel now forwards by.")] = 0
    addresses: Annotated[list[str], Meta(description="The addresses that are up and announced.")] = []
    mode: Annotated[Literal["dsr", "nat", ""], Meta(description="How it forwards.")] = ""
    before: Annotated[
        str, Meta(description="The host that had the addresses before and lives: older connections go on by it.")
    ] = ""


class DhcpLease(ApiStruct, frozen=True, kw_only=True):
    """What a DHCP server gave; the agent that holds it writes it, so that another host can go on with it."""

    ip: Annotated[str, Meta(description="The address.")]
    prefix_length: Annotated[int, Meta(ge=0, le=32, description="Of its subnet.")]
    gateway: Annotated[str, Meta(description="The subnet's router; empty: none.")] = ""
    network: Annotated[str, Meta(description='"namespace/name" of the network; empty is the management network.')] = ""
    server: Annotated[str, Meta(description="The DHCP server's identifier (option 54).")] = ""
    hardware_address: Annotated[str, Meta(description="The lease's own, for the server; not the link's.")] = ""
    acquired_time: Annotated[str, Meta(description="RFC 3339.")] = ""
    renew_time: Annotated[str, Meta(description="RFC 3339; T1. Empty: the lease has no end.")] = ""
    rebind_time: Annotated[str, Meta(description="RFC 3339; T2. Empty: the lease has no end.")] = ""
    expiry_time: Annotated[str, Meta(description="RFC 3339. Empty: the lease has no end.")] = ""


class ForeignAddress(ApiStruct, frozen=True, kw_only=True):
    """An address of this load balancer that somebody else has on the network (RFC 5227, RFC 4862 section 5.4)."""

    ip: Annotated[str, Meta(description="The address.")]
    hardware_address: Annotated[str, Meta(description="Who answered for it.")]


class HealthChange(ApiStruct, frozen=True, kw_only=True):
    """When a backend became healthy, or ceased to be."""

    time: Annotated[str, Meta(description="RFC 3339.")]
    healthy: Annotated[bool, Meta(description="What it was from then on.")]


class BackendHealth(ApiStruct, frozen=True, kw_only=True):
    """What the checks say of a backend."""

    healthy: Annotated[bool, Meta(description="Whether it takes new connections.")]
    since: Annotated[str, Meta(description="RFC 3339.")]
    message: Annotated[str, Meta(max_length=1024, description="Why, for people.")] = ""
    history: Annotated[
        list[HealthChange], Meta(max_length=MAX_HEALTH_HISTORY, description="The last changes, the newest last.")
    ] = []


class Backend(ApiStruct, frozen=True, kw_only=True):
    """A virtual machine that the selector matches, or a guest cluster's node that is checked.

    The host controller writes what it is, the agent its health.
    """

    name: Annotated[str, Meta(min_length=1, max_length=253, description="Of the virtual machine, or the node.")]
    addresses: Annotated[
        list[AddressText], Meta(max_length=8, description="Virtual machine: where it is reached, one a family.")
    ] = []
    mac_address: Annotated[
        str, Meta(max_length=17, description="Virtual machine: of its interface on the network, by its definition.")
    ] = ""
    direct: Annotated[
        bool, Meta(description="Virtual machine: it says that it carries the load balancer's address (mode dsr).")
    ] = False
    reason: Annotated[
        str, Meta(max_length=64, description="Why nothing is sent to it, as a word for programs; empty: it is used.")
    ] = ""
    message: Annotated[str, Meta(max_length=1024, description="Why, and what to do, for people.")] = ""
    health: Annotated[
        BackendHealth | None,
        Meta(description="By the health check; none: not checked (yet).", extra_json_schema=ATOMIC),
    ] = None


class LoadBalancerStatus(ApiStruct, frozen=True, kw_only=True):
    """What is."""

    address: Annotated[str, Meta(description="The first address.")] = ""
    allocated_address: Annotated[
        AllocatedAddress | None,
        Meta(description="The first address, as Harvester records it.", extra_json_schema=ATOMIC),
    ] = None
    addresses: Annotated[
        list[Address], Meta(max_length=2, description="All addresses, with what it takes to bring them up.")
    ] = []
    next_addresses: Annotated[
        list[Address],
        Meta(max_length=2, description="Addresses that take the place of others as soon as the holder has them up."),
    ] = []
    address_key: Annotated[
        str, Meta(max_length=64, description="Fixed at allocation; decides which host owns the addresses.")
    ] = ""
    backend_servers: Annotated[list[str], Meta(description="Addresses of the virtual machines.")] = []
    backends: Annotated[
        list[Backend], Meta(max_length=2 * MAX_BACKENDS, description="What it sends to, each with its health.")
    ] = []
    owner: Annotated[
        str,
        Meta(max_length=253, description="The host that is to have the addresses up; see holder for the one that has."),
    ] = ""
    holder: Annotated[
        Holder | None,
        Meta(description="The host that has the addresses up; while set they are not freed.", extra_json_schema=ATOMIC),
    ] = None
    lease: Annotated[
        DhcpLease | None, Meta(description="Of the DHCP server, where ipam is dhcp.", extra_json_schema=ATOMIC)
    ] = None
    foreign_addresses: Annotated[
        list[ForeignAddress],
        Meta(max_length=4, description="Addresses that the holder found with somebody else."),
    ] = []
    conditions: Annotated[
        list[Condition], Meta(description="Allocated, Leased, Programmed, Ready, ClientAddressNotPreserved.")
    ] = []


class LoadBalancer(KubeObject, frozen=True, kw_only=True):
    """A load balancer of the host cluster."""

    spec: LoadBalancerSpec = msgspec.field(default_factory=LoadBalancerSpec)
    status: LoadBalancerStatus = msgspec.field(default_factory=LoadBalancerStatus)
