"""Between the bridge's messages and the plain data of :mod:`cloudprovider.core.exchange`.

``*_to_wire`` never fail. What comes from the other side is checked here as far as it can be without knowing the
tenant: ``*_from_wire`` raise InvalidRequest with every violation found, so what they return is well formed.
"""

import ipaddress
from collections.abc import Sequence

from cloudprovider.bridge.api import Hello
from cloudprovider.bridge.checkcodec import check_from_wire, check_to_wire
from cloudprovider.bridge.checker import MAX_SHOWN, Checker
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.core import patterns
from cloudprovider.core.api.loadbalancer import MAX_DRAIN_SECONDS
from cloudprovider.core.combinations import Part, contradictions, narrowed
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.exchange import (
    ConditionStatus,
    GivenAddress,
    Inventory,
    InventoryItem,
    Ipam,
    IPFamily,
    IPFamilyPolicy,
    Listener,
    LoadBalancerRequest,
    LoadBalancerState,
    Mode,
    RejectedNode,
    ReportedNode,
    ServiceKey,
    StateCondition,
    TrafficPolicy,
)
from cloudprovider.core.plan import IPAddress, IPNetwork, L4Protocol
from cloudprovider.core.reasons import Heard

MAX_CSR_BYTES = 8192

_PROTOCOLS: dict[int, L4Protocol] = {pb.PROTOCOL_TCP: "TCP", pb.PROTOCOL_UDP: "UDP"}
_FAMILIES: dict[int, IPFamily] = {pb.IP_FAMILY_IPV4: "IPv4", pb.IP_FAMILY_IPV6: "IPv6"}
_FAMILY_POLICIES: dict[int, IPFamilyPolicy] = {
    pb.IP_FAMILY_POLICY_UNSPECIFIED: "SingleStack",
    pb.IP_FAMILY_POLICY_SINGLE_STACK: "SingleStack",
    pb.IP_FAMILY_POLICY_PREFER_DUAL_STACK: "PreferDualStack",
    pb.IP_FAMILY_POLICY_REQUIRE_DUAL_STACK: "RequireDualStack",
}
_IPAMS: dict[int, Ipam] = {
    pb.IPAM_UNSPECIFIED: "pool",
    pb.IPAM_POOL: "pool",
    pb.IPAM_DHCP: "dhcp",
    pb.IPAM_PRIMARY_SERVICE: "pool",
}
_MODES: dict[int, Mode | None] = {
    pb.MODE_UNSPECIFIED: None,
    pb.MODE_AUTO: "auto",
    pb.MODE_DSR: "dsr",
    pb.MODE_NAT: "nat",
}
_TRAFFIC_POLICIES: dict[int, TrafficPolicy] = {
    pb.EXTERNAL_TRAFFIC_POLICY_UNSPECIFIED: "Cluster",
    pb.EXTERNAL_TRAFFIC_POLICY_CLUSTER: "Cluster",
    pb.EXTERNAL_TRAFFIC_POLICY_LOCAL: "Local",
}
_STATUSES: dict[str, ConditionStatus] = {"True": "True", "False": "False"}

_PROTOCOLS_OUT: dict[L4Protocol, pb.Protocol.ValueType] = {"TCP": pb.PROTOCOL_TCP, "UDP": pb.PROTOCOL_UDP}
_FAMILIES_OUT: dict[IPFamily, pb.IpFamily.ValueType] = {"IPv4": pb.IP_FAMILY_IPV4, "IPv6": pb.IP_FAMILY_IPV6}
_FAMILY_POLICIES_OUT: dict[IPFamilyPolicy, pb.IpFamilyPolicy.ValueType] = {
    "SingleStack": pb.IP_FAMILY_POLICY_SINGLE_STACK,
    "PreferDualStack": pb.IP_FAMILY_POLICY_PREFER_DUAL_STACK,
    "RequireDualStack": pb.IP_FAMILY_POLICY_REQUIRE_DUAL_STACK,
}
_IPAMS_OUT: dict[Ipam, pb.Ipam.ValueType] = {"pool": pb.IPAM_POOL, "dhcp": pb.IPAM_DHCP}
_MODES_OUT: dict[Mode | None, pb.Mode.ValueType] = {
    None: pb.MODE_UNSPECIFIED,
    "auto": pb.MODE_AUTO,
    "dsr": pb.MODE_DSR,
    "nat": pb.MODE_NAT,
}
_TRAFFIC_POLICIES_OUT: dict[TrafficPolicy, pb.ExternalTrafficPolicy.ValueType] = {
    "Cluster": pb.EXTERNAL_TRAFFIC_POLICY_CLUSTER,
    "Local": pb.EXTERNAL_TRAFFIC_POLICY_LOCAL,
}


def _network(text: str) -> IPNetwork:
    return ipaddress.ip_network(text)


def service_to_wire(key: ServiceKey) -> pb.ServiceKey:
    """Write a Service's key."""
    return pb.ServiceKey(namespace=key.namespace, name=key.name, uid=key.uid)


def service_from_wire(message: pb.ServiceKey) -> ServiceKey:
    """Read a Service's key."""
    check = Checker()
    key = check.service("service", message)
    check.done()
    return key


def hello_from_wire(message: pb.ConnectRequest) -> Hello:
    """Read how a guest introduces itself."""
    check = Checker()
    hello = Hello(
        cluster_uid=check.text("cluster_uid", message.cluster_uid, 64, required=True),
        guest_version=check.text("guest_version", message.guest_version, 64),
    )
    check.done()
    return hello


def ensure_to_wire(
    service: ServiceKey, request: LoadBalancerRequest, shown: tuple[IPAddress, ...]
) -> pb.EnsureLoadBalancerRequest:
    """Write what a Service is to get."""
    return pb.EnsureLoadBalancerRequest(
        service=service_to_wire(service),
        shown_addresses=[str(a) for a in shown[:MAX_SHOWN]],
        spec=pb.LoadBalancerSpec(
            listeners=[
                pb.Listener(
                    name=each.name,
                    protocol=_PROTOCOLS_OUT[each.protocol],
                    port=each.port,
                    node_port=each.node_port or 0,
                )
                for each in request.listeners
            ],
            ipam=pb.IPAM_PRIMARY_SERVICE if request.primary_service else _IPAMS_OUT[request.ipam],
            ip_pool=request.ip_pool,
            network=request.network,
            scope_project=request.scope_project,
            scope_namespace=request.scope_namespace,
            addresses=[str(a) for a in request.addresses],
            ip_families=[_FAMILIES_OUT[f] for f in request.ip_families],
            ip_family_policy=_FAMILY_POLICIES_OUT[request.ip_family_policy],
            mode=_MODES_OUT[request.mode],
            external_traffic_policy=_TRAFFIC_POLICIES_OUT[request.external_traffic_policy],
            endpoint_nodes=request.endpoint_nodes,
            health_check_node_port=request.health_check_node_port or 0,
            client_ip_affinity_seconds=request.affinity_seconds or 0,
            source_ranges=[str(n) for n in request.sources],
            primary_service=request.primary_service,
            dhcp_hostname=request.dhcp_hostname,
            drain_seconds=request.drain_seconds,
            health_check=None if request.health_check is None else check_to_wire(request.health_check),
        ),
    )


def ensure_from_wire(
    message: pb.EnsureLoadBalancerRequest,
) -> tuple[ServiceKey, LoadBalancerRequest, tuple[IPAddress, ...]]:
    """Read what a Service is to get: the Service, the request as it can be served, the addresses that it shows."""
    check = Checker()
    spec = message.spec
    families = [check.enum(f"spec.ipFamilies[{i}]", _FAMILIES, f, "IPv4") for i, f in enumerate(spec.ip_families)]
    if len(spec.ip_families) > len(set(spec.ip_families)):
        check.bad("spec.ipFamilies", "Duplicate", "names a family twice")
    if spec.client_ip_affinity_seconds > 86400:
        check.bad(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "OutOfRange",
            f"{spec.client_ip_affinity_seconds} is more than a day: use 1 to 86400",
        )
    if spec.drain_seconds > MAX_DRAIN_SECONDS:
        check.bad("spec.drainSeconds", "OutOfRange", f"{spec.drain_seconds} is more than a day: use 0 to 86400")
    policy = check.enum("spec.externalTrafficPolicy", _TRAFFIC_POLICIES, spec.external_traffic_policy, "Cluster")
    if policy == "Cluster" and spec.endpoint_nodes:
        check.bad("endpoint_nodes", "Unexpected", "is for externalTrafficPolicy Local only")
    request = LoadBalancerRequest(
        listeners=_listeners(check, spec.listeners),
        ipam=check.enum("spec.ipam", _IPAMS, spec.ipam, "pool"),
        ip_pool=check.text("spec.ipPool", spec.ip_pool, 253),
        network=check.text("spec.network", spec.network, 127),
        scope_project=check.text("spec.project", spec.scope_project, 127),
        scope_namespace=check.text("spec.namespace", spec.scope_namespace, 63),
        addresses=check.addresses("spec.addresses", spec.addresses),
        ip_families=tuple(families),
        ip_family_policy=check.enum("spec.ipFamilyPolicy", _FAMILY_POLICIES, spec.ip_family_policy, "SingleStack"),
        mode=check.enum("spec.mode", _MODES, spec.mode, None),
        external_traffic_policy=policy,
        endpoint_nodes=tuple(
            check.text(f"endpoint_nodes[{i}]", name, 253, required=True) for i, name in enumerate(spec.endpoint_nodes)
        ),
        health_check_node_port=check.port("spec.healthCheckNodePort", spec.health_check_node_port, optional=True),
        affinity_seconds=spec.client_ip_affinity_seconds or None,
        sources=check.parsed("spec.loadBalancerSourceRanges", spec.source_ranges, _network, "CIDR"),
        primary_service=check.name(
            "spec.primaryService", spec.primary_service, patterns.SERVICE, 127, '"namespace/name" of a Service'
        ),
        dhcp_hostname=check.name("spec.dhcpHostname", spec.dhcp_hostname, patterns.HOSTNAME, 253, "host name"),
        drain_seconds=spec.drain_seconds if spec.HasField("drain_seconds") else None,
        health_check=check_from_wire(check, spec.health_check) if spec.HasField("health_check") else None,
    )
    service = check.service("service", message.service)
    _who_gives_the_address(check, service, spec, request)
    shown = check.shown("shown_addresses", message.shown_addresses)
    check.done()
    return service, narrowed(request), shown


def _who_gives_the_address(
    check: Checker, service: ServiceKey, spec: pb.LoadBalancerSpec, request: LoadBalancerRequest
) -> None:
    if spec.ipam == pb.IPAM_PRIMARY_SERVICE and not spec.primary_service:
        check.bad("spec.primaryService", "Required", "must name the Service whose address is shared")
    if spec.dhcp_hostname and request.ipam != "dhcp":
        check.bad("spec.dhcpHostname", "Unexpected", "is for ipam dhcp only")
    said: dict[Part, tuple[str, bool]] = {
        "ipam": ("spec.ipam", spec.ipam in (pb.IPAM_POOL, pb.IPAM_DHCP)),
        "ip_pool": ("spec.ipPool", bool(spec.ip_pool)),
        "network": ("spec.network", bool(spec.network)),
        "scope_project": ("spec.project", bool(spec.scope_project)),
        "scope_namespace": ("spec.namespace", bool(spec.scope_namespace)),
        "addresses": ("spec.addresses", bool(spec.addresses)),
        "primary_service": ("spec.primaryService", True),
    }
    written = {part: (field,) for part, (field, there) in said.items() if there}
    check.violations.extend(contradictions(service, request, written))


def _listeners(check: Checker, messages: Sequence[pb.Listener]) -> tuple[Listener, ...]:
    if not messages:
        check.bad("spec.ports", "Required", "a load balancer needs at least one port")
    seen: set[tuple[int, int]] = set()
    listeners: list[Listener] = []
    for i, each in enumerate(messages):
        field = f"spec.ports[{i}]"
        protocol = check.enum(f"{field}.protocol", _PROTOCOLS, each.protocol, "TCP")
        port = check.port(f"{field}.port", each.port, optional=False) or 0
        if (each.protocol, port) in seen:
            check.bad(f"{field}.port", "Duplicate", f"{protocol} {port} is there twice")
        seen.add((each.protocol, port))
        listeners.append(
            Listener(
                name=check.text(f"{field}.name", each.name, 63),
                protocol=protocol,
                port=port,
                node_port=check.port(f"{field}.nodePort", each.node_port, optional=True),
            )
        )
    return tuple(listeners)


def state_to_wire(state: LoadBalancerState) -> pb.LoadBalancerState:
    """Write a state."""
    return pb.LoadBalancerState(
        service=service_to_wire(state.service),
        addresses=[pb.Address(ip=str(a.ip), ip_pool=a.ip_pool) for a in state.addresses],
        conditions=[
            pb.Condition(type=c.type, status=c.status, reason=c.reason, message=c.message) for c in state.conditions
        ],
        host_object=state.host_object,
        mode=state.mode,
    )


def state_from_wire(message: pb.LoadBalancerState) -> LoadBalancerState:
    """Read a state. A mode or a condition status that a newer host may know reads as not known; an address that can't
    be read becomes a condition, so that one odd state does not end the stream of all."""
    check = Checker()
    service = check.service("service", message.service)
    check.done()
    addresses: list[GivenAddress] = []
    conditions: list[StateCondition] = []
    for given in message.addresses:
        try:
            addresses.append(GivenAddress(ipaddress.ip_address(given.ip), given.ip_pool))
        except ValueError:
            conditions.append(
                StateCondition(
                    "Allocated",
                    "False",
                    "AddressNotUnderstood",
                    f"the host gives the address {given.ip[:64]!r}, which this guest can't read: is the host newer?"
                    " Upgrade the guest program",
                )
            )
    conditions += (
        StateCondition(c.type, _STATUSES.get(c.status, "Unknown"), c.reason, c.message) for c in message.conditions
    )
    return LoadBalancerState(
        service=service,
        addresses=tuple(addresses),
        conditions=tuple(conditions),
        host_object=message.host_object,
        mode="dsr" if message.mode == "dsr" else "nat" if message.mode == "nat" else "",
    )


def nodes_to_wire(nodes: Sequence[ReportedNode]) -> pb.ReportNodesRequest:
    """Write the nodes."""
    return pb.ReportNodesRequest(
        nodes=[
            pb.Node(name=n.name, addresses=[str(a) for a in n.addresses], virtual_machine=n.virtual_machine)
            for n in nodes
        ]
    )


def nodes_from_wire(message: pb.ReportNodesRequest) -> tuple[ReportedNode, ...]:
    """Read the nodes; names are unique."""
    check = Checker()
    nodes = tuple(
        ReportedNode(
            check.text(f"nodes[{i}].name", n.name, 253, required=True),
            check.addresses(f"nodes[{i}].addresses", n.addresses),
            check.text(f"nodes[{i}].virtual_machine", n.virtual_machine, 253),
        )
        for i, n in enumerate(message.nodes)
    )
    if len({n.name for n in nodes}) < len(nodes):
        check.bad("nodes", "Duplicate", "names a node twice")
    check.done()
    return nodes


def rejected_to_wire(rejected: Sequence[RejectedNode]) -> pb.ReportNodesResponse:
    """Write the nodes that are not accepted."""
    return pb.ReportNodesResponse(
        rejected=[pb.RejectedNode(name=r.name, address=r.address, reason=r.reason, message=r.message) for r in rejected]
    )


def rejected_from_wire(message: pb.ReportNodesResponse) -> tuple[RejectedNode, ...]:
    """Read the nodes that are not accepted."""
    return tuple(RejectedNode(r.name, r.address, Heard(r.reason), r.message) for r in message.rejected)


def inventory_to_wire(inventory: Inventory) -> pb.ReportInventoryRequest:
    """Write an inventory."""
    return pb.ReportInventoryRequest(
        items=[
            pb.InventoryItem(
                service=service_to_wire(i.service), shown_addresses=[str(a) for a in i.shown_addresses[:MAX_SHOWN]]
            )
            for i in inventory.items
        ],
        resource_version=inventory.resource_version,
        complete=inventory.complete,
        fencing_token=inventory.fencing_token,
    )


def inventory_from_wire(message: pb.ReportInventoryRequest) -> Inventory:
    """Read an inventory."""
    check = Checker()
    inventory = Inventory(
        items=tuple(
            InventoryItem(
                check.service(f"items[{i}].service", item.service),
                check.shown(f"items[{i}].shown_addresses", item.shown_addresses),
            )
            for i, item in enumerate(message.items)
        ),
        resource_version=check.text("resource_version", message.resource_version, 128, required=True),
        complete=message.complete,
        fencing_token=message.fencing_token,
    )
    check.done()
    return inventory


def csr_from_wire(message: pb.RenewCertificateRequest) -> bytes:
    """Raises InvalidRequest for one that is too long to be one."""
    if len(message.csr) > MAX_CSR_BYTES:
        text = f"{len(message.csr)} bytes are more than a certificate request has ({MAX_CSR_BYTES})"
        raise InvalidRequest(Violation(field="csr", reason="TooLong", message=text))
    return message.csr
