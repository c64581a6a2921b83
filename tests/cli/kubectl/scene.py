"""Clusters to look at, in memory: what ``kubectl lb`` prints of them is compared word by word, here and in the docs."""

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Literal, TypeVar

import msgspec

from cloudprovider.cli.kubectl.main import build_parser, rendered
from cloudprovider.cli.kubectl.screen import Progress, Style
from cloudprovider.cli.kubectl.session import SYSTEM, Session
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterSpec, GuestClusterStatus, GuestNode
from cloudprovider.core.api.kubernetes import (
    Endpoint,
    EndpointSlice,
    Lease,
    LeaseSpec,
    LoadBalancerIngress,
    Node,
    NodeAddress,
    NodeCondition,
    NodeStatus,
    Service,
    ServiceLoadBalancerStatus,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import (
    Address,
    Backend,
    BackendHealth,
    HealthCheck,
    Holder,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
    ServiceReference,
)
from cloudprovider.core.api.meta import Condition, KubeObject, ObjectMeta
from cloudprovider.core.api.pool import (
    AddressConflict,
    Allocation,
    IPBlock,
    IPBlockSpec,
    IPPool,
    IPPoolSpec,
    Range,
    Reservation,
    Scope,
    Selector,
)
from cloudprovider.core.exchange import ServiceKey, Tenant
from cloudprovider.core.hosts import NODE_ANNOTATION
from cloudprovider.core.lbobject import object_key
from cloudprovider.core.naming import block_name
from cloudprovider.core.ranges import block_of
from cloudprovider.kube.api import Resource
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import (
    ENDPOINTSLICES,
    GUESTCLUSTERS,
    IPBLOCKS,
    IPPOOLS,
    LEASES,
    LOADBALANCERS,
    NODES,
    SERVICES,
    VIRTUAL_MACHINE_INSTANCES,
)

T = TypeVar("T", bound=KubeObject)

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SHOP = Tenant("shops", "shop")
WEB = ServiceKey("default", "web", "11")
DNS = ServiceKey("default", "dns", "12")
WEB_OBJECT, DNS_OBJECT = ("/".join(object_key(SHOP, key)) for key in (WEB, DNS))


class Silent:
    """A stream that nobody looks at."""

    def isatty(self) -> bool:
        return False

    def write(self, _: str) -> int:
        return 0

    def flush(self) -> None: ...


class Scene:
    """One cluster. ``side``: whether it is a host or a guest."""

    def __init__(self, side: Literal["host", "guest"]) -> None:
        self.side = side
        self.cluster = FakeCluster(lambda: NOW)

    def add(self, resource: Resource[T], *objects: T) -> None:
        for each in objects:
            self.cluster.seed(resource, each)

    async def run(self, *arguments: str, width: int | None = None, color: bool = False) -> tuple[str, int, list[str]]:
        """What a command prints, its exit code, and its notes."""
        parsed = build_parser().parse_args(arguments)
        client = FakeKubeClient(self.cluster)
        where = parsed.namespace or "default"
        progress = Progress(Silent())  # type: ignore[arg-type]  # all that is used of it
        session = Session(client, self.side, where, parsed.all_namespaces, NOW, progress)
        answer = await parsed.run(session, parsed)
        return rendered(answer, parsed.output, Style(width, color)), answer.code, session.notes


def lease(name: str, holder: str, seconds_ago: int = 3) -> Lease:
    minute, second = divmod(3600 - seconds_ago, 60)
    renewed = f"2026-01-01T11:{minute:02}:{second:02}.000000Z"
    return Lease(
        metadata=ObjectMeta(name=name, namespace=SYSTEM, annotations={NODE_ANNOTATION: holder} if holder else {}),
        spec=LeaseSpec(holder_identity=holder, lease_duration_seconds=15, renew_time=renewed),
    )


def condition(kind: str, reason: str = "", message: str = "") -> Condition:
    """Fulfilled, unless there is a reason why not."""
    return Condition(type=kind, status="False" if reason else "True", reason=reason or kind, message=message)


GOOD = [condition("Allocated"), condition("Programmed"), condition("Ready")]


def guest_balancer(
    service: ServiceKey,
    *ports: int,
    address: str = "",
    conditions: list[Condition] | None = None,
    up: bool = True,
    mode: Literal["dsr", "nat"] = "nat",
    protocol: Literal["TCP", "UDP"] = "TCP",
) -> LoadBalancer:
    namespace, name = object_key(SHOP, service)
    prefix = "cloudprovider.harvesterhci.io"
    return LoadBalancer(
        metadata=ObjectMeta(
            name=name,
            namespace=namespace,
            uid=f"uid-{service.name}",
            generation=1,
            creation_timestamp="2025-12-29T12:00:00Z",
            labels={
                f"{prefix}/cluster": SHOP.cluster,
                f"{prefix}/serviceNamespace": service.namespace,
                f"{prefix}/serviceName": service.name,
            },
        ),
        spec=LoadBalancerSpec(
            workload_type="cluster",
            listeners=[Listener(port=p, protocol=protocol, backend_port=30000 + p) for p in ports],
            service=ServiceReference(namespace=service.namespace, name=service.name, uid=service.uid),
        ),
        status=LoadBalancerStatus(
            address=address,
            addresses=[Address(ip=address, ip_pool="shop", prefix_length=24, network="default/vlan8")]
            if address
            else [],
            holder=Holder(node="host-1", generation=1, addresses=[address], mode=mode) if address and up else None,
            conditions=GOOD if conditions is None else conditions,
        ),
    )


def machine_balancer(name: str, *backends: Backend, address: str = "10.0.9.10", port: int | None = 80) -> LoadBalancer:
    return LoadBalancer(
        metadata=ObjectMeta(
            name=name, namespace="office", uid=f"uid-{name}", generation=1, creation_timestamp="2026-01-01T11:58:30Z"
        ),
        spec=LoadBalancerSpec(
            workload_type="vm",
            listeners=[Listener(name="web", port=443, backend_port=8443)],
            backend_server_selector={"app": ["intranet"]},
            health_check=HealthCheck(port=port),
        ),
        status=LoadBalancerStatus(
            address=address,
            addresses=[Address(ip=address, ip_pool="office", prefix_length=24)],
            backends=list(backends),
            holder=Holder(node="host-2", generation=1, addresses=[address], mode="nat"),
            conditions=GOOD,
        ),
    )


def backend(name: str, ip: str, *, healthy: bool | None = None, message: str = "", reason: str = "") -> Backend:
    health = None
    if healthy is not None:
        health = BackendHealth(healthy=healthy, since="2026-01-01T11:00:00Z", message=message)
    return Backend(
        name=name,
        addresses=[] if reason else [ip],
        reason=reason,
        message=message if reason else "",
        health=health,
    )


def pool(name: str, *ranges: Range, network: str = "", reservations: list[Reservation] | None = None) -> IPPool:
    return IPPool(
        metadata=ObjectMeta(name=name, creation_timestamp="2025-12-01T00:00:00Z"),
        spec=IPPoolSpec(
            ranges=list(ranges),
            selector=Selector(network=network, scope=[Scope(project="*", namespace="*", guest_cluster="*")]),
            reservations=reservations or [],
        ),
    )


def block(name: str, held: dict[str, tuple[str, str]], conflicts: tuple[str, ...] = ()) -> IPBlock:
    """``held``: address to owner and tenant."""
    first = block_of(ip_address(next(iter(held)))).address
    return IPBlock(
        metadata=ObjectMeta(name=block_name(name, first)),
        spec=IPBlockSpec(
            pool=name,
            first=str(first),
            allocations={a: Allocation(owner=owner, uid="u", tenant=tenant) for a, (owner, tenant) in held.items()},
            conflicts={
                a: AddressConflict(hardware_address="52:54:00:00:00:09", until="2026-01-01T12:05:00Z")
                for a in conflicts
            },
        ),
    )


def host() -> Scene:
    """A host with a tenant, machines, and something of everything that may be wrong."""
    scene = Scene("host")
    scene.add(
        LEASES, lease("cloudprovider-host", "host-1_0badcafe"), lease("cloudprovider-agent-default-host-1", "host-1")
    )
    scene.add(LEASES, lease("cloudprovider-agent-default-host-2", "host-2"))
    nodes = [GuestNode(name=f"worker-{i}", addresses=[f"10.0.8.1{i}"]) for i in (1, 2, 3)]
    scene.add(
        GUESTCLUSTERS,
        GuestCluster(
            metadata=ObjectMeta(name=SHOP.cluster, namespace=SHOP.namespace),
            spec=GuestClusterSpec(node_cidrs=["10.0.8.0/25"]),
            status=GuestClusterStatus(cluster_uid="c", last_seen_time="2026-01-01T11:59:58Z", nodes=nodes),
        ),
    )
    scene.add(
        LOADBALANCERS,
        guest_balancer(WEB, 80, 443, address="10.0.8.100", mode="dsr"),
        guest_balancer(
            DNS,
            53,
            protocol="UDP",
            conditions=[
                condition(
                    "Allocated",
                    "PoolExhausted",
                    'all 4 IPv4 addresses of the pool "office" are allocated: delete a load balancer that uses it, or'
                    " an operator must add a range",
                )
            ],
        ),
        machine_balancer(
            "intranet",
            backend("vm-1", "10.0.9.31", healthy=True),
            backend("vm-2", "10.0.9.32", healthy=False, message="connection refused"),
            backend("vm-3", "", reason="AgentNotConnected", message="Its guest agent is not connected."),
        ),
    )
    scene.add(
        IPPOOLS,
        pool(
            "shop",
            Range(subnet="10.0.8.0/24", range_start="10.0.8.100", range_end="10.0.8.119"),
            network="default/vlan8",
            reservations=[Reservation(address="10.0.8.119", namespace="shops", load_balancer="later")],
        ),
        pool("office", Range(subnet="10.0.9.0/24", range_start="10.0.9.10", range_end="10.0.9.13")),
    )
    held = {
        "10.0.8.100": (WEB_OBJECT, SHOP.path),
        "10.0.8.101": (f"{SHOP.namespace}/old", SHOP.path),
        "10.0.8.102": ("agent/host-1", ""),
    }
    scene.add(
        IPBLOCKS,
        block("shop", held, conflicts=("10.0.8.105",)),
        block(
            "office",
            {"10.0.9.10": ("office/intranet", "office")}
            | {f"10.0.9.{n}": (f"lab/vm-{n}", "lab") for n in (11, 12, 13)},
        ),
    )
    scene.add(
        VIRTUAL_MACHINE_INSTANCES,
        *(
            VirtualMachineInstance(
                metadata=ObjectMeta(name=f"vm-{i}", namespace="office", labels={"app": "intranet", "os": "debian"})
            )
            for i in (1, 2, 3)
        ),
    )
    return scene


def service(
    name: str, *, reason: str = "", message: str = "", address: str = "10.0.8.100", known: bool = True, **spec: object
) -> Service:
    fields = {"type": "LoadBalancer", "ports": [ServicePort(port=80, node_port=30080)], **spec}
    if not reason:
        message = f"reachable at {address} (pool shop), mode dsr"
    said = [condition("loadbalancer.harvesterhci.io/Ready", reason, message)] if known else []
    return Service(
        metadata=ObjectMeta(
            name=name,
            namespace="default",
            uid=f"uid-{name}",
            creation_timestamp="2026-01-01T09:00:00Z",
            finalizers=["service.kubernetes.io/load-balancer-cleanup"] if known else [],
        ),
        spec=ServiceSpec(**fields),  # type: ignore[arg-type]
        status=ServiceStatus(
            load_balancer=ServiceLoadBalancerStatus(ingress=[LoadBalancerIngress(ip=address)] if address else []),
            conditions=said,
        ),
    )


def node(name: str, *, ready: bool = True, labels: dict[str, str] | None = None) -> Node:
    changed = "2026-01-01T09:00:00Z"
    return Node(
        metadata=ObjectMeta(name=name, labels=labels or {}),
        status=NodeStatus(
            addresses=[NodeAddress(type="InternalIP", address="10.0.8.11")],
            conditions=[NodeCondition(type="Ready", status="True" if ready else "False", last_transition_time=changed)],
        ),
    )


def endpoints(of: str, *nodes: str) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name=f"{of}-1", namespace="default", labels={"kubernetes.io/service-name": of}),
        endpoints=[Endpoint(addresses=["10.42.0.5"], node_name=n) for n in nodes],
    )


def guest(*services: Service, slices: bool = True) -> Scene:
    """A guest with three nodes, of which one is not ready for long."""
    scene = Scene("guest")
    scene.add(LEASES, lease("cloudprovider-guest", "worker-1_0badcafe"))
    scene.add(NODES, node("worker-1"), node("worker-2"), node("worker-3", ready=False))
    scene.add(SERVICES, *services)
    if slices:
        scene.add(ENDPOINTSLICES, *(endpoints(s.metadata.name, "worker-1") for s in services))
    return scene


def patched(obj: T, **status: object) -> T:
    """The same with other fields in its status."""
    found = msgspec.structs.replace(obj.status, **status)  # type: ignore[attr-defined]
    return msgspec.structs.replace(obj, status=found)
