"""Who answers at an address and port, and where the packets go."""

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

import msgspec

from cloudprovider.core.addressing import is_ours
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import Address, BackendHealth, Listener, LoadBalancer
from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.backends import is_checked, passes, takes_traffic
from cloudprovider.core.checks import NOT_CHECKED
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.metrics.agent import CLIENT_BYTES, CLIENT_PACKETS, MANAGEMENT
from cloudprovider.core.nodehealth import nodes_wanted
from cloudprovider.core.overview import guest_cluster_of
from cloudprovider.core.plan import IPAddress

_COUNTER = re.compile(
    rf"^(?P<name>{CLIENT_PACKETS.name}|{CLIENT_BYTES.name})\{{(?P<labels>[^}}]*)\}} (?P<value>[\d.e+]+)$", re.MULTILINE
)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Target(msgspec.Struct, frozen=True):
    """What is asked about."""

    address: IPAddress
    port: int
    protocol: str


class TracedBackend(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where packets go. ``healthy`` None: nothing checks it but the agent's own probes, which stand in its log."""

    name: str
    addresses: list[str]
    port: int | None
    healthy: bool | None
    message: str = ""


class Traffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the agent has counted since it started; of all ports of the load balancer on this network."""

    client_packets: int
    client_bytes: int


class Trace(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What there is at an address and port. ``owner``: "namespace/name" of a LoadBalancer, or whom else the pool's
    records name; empty: nobody. ``problem``: why nothing is forwarded, empty where it is. ``counters`` None:
    ``uncounted`` says why."""

    address: str
    port: int
    protocol: str
    network: str = ""
    pool: str = ""
    owner: str = ""
    service: str = ""
    rule: str = ""
    mode: str = ""
    host: str = ""
    sources: list[str] = []
    backends: list[TracedBackend] = []
    counters: Traffic | None = None
    uncounted: str = ""
    problem: str = ""


def parse_target(text: str) -> Target:
    """Read "ADDRESS:PORT[/PROTOCOL]", IPv6 in brackets. Raises ConfigurationError."""
    place, _, protocol = text.partition("/")
    host, _, port = place.rpartition(":")
    protocol = protocol.upper() or "TCP"
    try:
        address = ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        if (address.version == 6) != host.startswith("[") or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError
        if protocol not in ("TCP", "UDP"):
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            f'"{text}" is not ADDRESS:PORT[/PROTOCOL]: write it as 10.0.8.100:80, 10.0.8.100:53/UDP, [fd00::1]:443'
        ) from None
    return Target(address, int(port), protocol)


def trace(
    target: Target,
    balancers: Sequence[LoadBalancer],
    clusters: Mapping[tuple[str, str], GuestCluster] | None,
    blocks: Sequence[IPBlock] | None,
) -> list[Trace]:
    """Return what there is at an address: one entry for each network that has a load balancer on it; one without a
    load balancer where none has."""
    found: list[Trace] = []
    networks: dict[str, list[tuple[LoadBalancer, Address]]] = {}
    for lb in sorted(balancers, key=lambda x: x.key):
        for address in (*lb.status.addresses, *lb.status.next_addresses):
            if address.ip == str(target.address):
                networks.setdefault(address.network, []).append((lb, address))
    for sharers in networks.values():
        serving = [(lb, a) for lb, a in sharers if _listener(lb, target) is not None]
        if serving:
            found.append(_served(target, *serving[0], clusters))
        else:
            found.append(_unserved(target, sharers))
    return found or [_nobody(target, blocks or ())]


def counters_of(text: str, network: str, balancer: str) -> Traffic | None:
    """Read an agent's metrics; None where they do not name the load balancer ("namespace/name")."""
    values: dict[str, int] = {}
    for match in _COUNTER.finditer(text):
        labels = dict(_LABEL.findall(match["labels"]))
        if labels.get("load_balancer") == balancer and labels.get("network") == (network or MANAGEMENT):
            values[match["name"]] = int(float(match["value"]))
    if not values:
        return None
    return Traffic(client_packets=values.get(CLIENT_PACKETS.name, 0), client_bytes=values.get(CLIENT_BYTES.name, 0))


def _served(
    target: Target, lb: LoadBalancer, address: Address, clusters: Mapping[tuple[str, str], GuestCluster] | None
) -> Trace:
    listener = _listener(lb, target)
    holder = lb.status.holder
    mode = holder.mode if holder is not None else ""
    port = target.port if mode == "dsr" or listener is None else listener.backend_port
    problem = ""
    if not is_ours(lb):
        problem = "another cloud provider made this load balancer: nothing is forwarded for it"
    elif holder is None or address.ip not in holder.addresses:
        problem = "no host has the address up"
    elif said := next((c for c in lb.status.conditions if c.type == "Ready" and c.status == "False"), None):
        problem = said.message
    return msgspec.structs.replace(
        _owned(target, lb, address),
        rule=_rule(target, lb, mode, port),
        mode=mode,
        host=holder.node if holder is not None else "",
        sources=list(lb.spec.source_ranges),
        backends=list(_backends(lb, port, clusters)),
        problem=problem,
    )


def _rule(target: Target, lb: LoadBalancer, mode: str, port: int | None) -> str:
    client = "by the client's address" if lb.spec.session_affinity == "ClientIP" else "by the client's address and port"
    if mode == "dsr":
        how = "frames go on unchanged to a backend's MAC address"
    elif mode == "nat":
        how = f"to a backend's address, port {port}" if port is not None else "to no port: the Service has no node port"
    else:
        how = "not chosen yet: no host forwards it"
    return f"{target.protocol} {target.port}: {how}, chosen {client}"


def _backends(
    lb: LoadBalancer, port: int | None, clusters: Mapping[tuple[str, str], GuestCluster] | None
) -> Iterable[TracedBackend]:
    judged = {b.name: b.health for b in lb.status.backends if b.health is not None}
    checked = is_checked(lb)
    if lb.spec.workload_type != "cluster":
        for b in sorted(lb.status.backends, key=lambda x: x.name):
            takes = takes_traffic(lb, b)
            said = b.message or _why(judged.get(b.name), checked=checked)
            healthy = takes if checked or not takes else None
            yield TracedBackend(name=b.name, addresses=b.addresses, port=port, healthy=healthy, message=said)
        return
    cluster = guest_cluster_of(lb, clusters)
    if cluster is None:
        return
    wanted = nodes_wanted(lb)
    taking = wanted.taking(cluster)
    probed = {each.name: each.health for each in cluster.status.node_health}
    for node in wanted.of(cluster):
        by_check, by_probe = judged.get(node.name), probed.get(node.name)
        takes = node.name in taking
        failing = by_probe if by_probe is not None and not by_probe.healthy and passes(lb, by_check) else None
        yield TracedBackend(
            name=node.name,
            addresses=node.addresses,
            port=port,
            healthy=takes if checked or not takes else None,
            message=failing.message if failing is not None else _why(by_check, checked=checked),
        )


def _why(health: BackendHealth | None, *, checked: bool) -> str:
    if not checked:
        return ""
    return NOT_CHECKED if health is None else health.message


def _unserved(target: Target, sharers: Sequence[tuple[LoadBalancer, Address]]) -> Trace:
    lb, address = sharers[0]
    ports = ", ".join(sorted({f"{x.port}/{x.protocol}" for other, _ in sharers for x in other.spec.listeners}))
    problem = f"it has no port {target.port}/{target.protocol}, connections are refused; it has {ports}"
    return msgspec.structs.replace(_owned(target, lb, address), problem=problem)


def _owned(target: Target, lb: LoadBalancer, address: Address) -> Trace:
    """Whose the address is."""
    return Trace(
        address=str(target.address),
        port=target.port,
        protocol=target.protocol,
        network=address.network,
        pool=address.ip_pool,
        owner="/".join(lb.key),
        service=_service(lb),
    )


def _nobody(target: Target, blocks: Sequence[IPBlock]) -> Trace:
    text = str(target.address)
    traced = Trace(address=text, port=target.port, protocol=target.protocol)
    for block in blocks:
        record = block.spec.allocations.get(text)
        if record is not None:
            problem = f"it is kept for {record.owner}, which does not show it"
            if record.owner.startswith("agent/"):
                problem = "it is a host's own address: no load balancer answers there"
            return msgspec.structs.replace(traced, pool=block.spec.pool, owner=record.owner, problem=problem)
        if text in block.spec.history:
            problem = f"nobody has it; {block.spec.history[text]} had it last"
            return msgspec.structs.replace(traced, pool=block.spec.pool, problem=problem)
    return msgspec.structs.replace(traced, problem="no load balancer that you may see has this address")


def _listener(lb: LoadBalancer, target: Target) -> Listener | None:
    return next((x for x in lb.spec.listeners if (x.port, x.protocol) == (target.port, target.protocol)), None)


def _service(lb: LoadBalancer) -> str:
    found = service_of(lb)
    return "" if found is None else f"{found[0].cluster}: {found[1].path}"
