"""Whether both clusters, the pools, the kernel and the link say the same: compared exactly, every difference told.

:func:`compare` is pure, over what snapshot.py has gathered; it shares no code with the programs that it checks.
Every sentence begins with the place that is wrong: ``guest``, ``host``, ``pools``, ``kernel`` or ``link``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network

from tests.lab.client import Object
from tests.lab.kernelcheck import Node, balancers_and_kernel
from tests.lab.lab import TENANT, TENANT_NAMESPACE, Lab
from tests.lab.machinecheck import fixed, is_for_machines, machines_behind
from tests.lab.process import LabError, wait_for
from tests.lab.snapshot import State, collect

HANDLED_CLASSES = (None, "cloudprovider.harvesterhci.io/load-balancer")
EXCLUDED = (
    "node.kubernetes.io/exclude-from-external-load-balancers",
    "service.kubernetes.io/exclude-from-external-load-balancers",
)
SERVICE_FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
BALANCER_FINALIZER = "loadbalancer.harvesterhci.io/address-release"
SERVICE_READY = "loadbalancer.harvesterhci.io/Ready"
BLOCK_SIZE = 256
MAP_LIMIT = 1000
"""Entries of a pool's status, after which it is cut and says so."""
AGREEMENT_LIMIT_SECONDS = 20.0

ServiceName = tuple[str, str]


def differences(lab: Lab) -> list[str]:
    """Every sentence on which two of the places disagree; none when all is well."""
    return compare(collect(lab))


def wait_until_agreed(lab: Lab, timeout: float = AGREEMENT_LIMIT_SECONDS) -> None:
    """Wait until nothing differs. Raises LabError with every difference that is left."""
    wait_until_none(lambda: differences(lab), timeout)


def wait_until_none(look: Callable[[], list[str]], timeout: float) -> None:
    """Wait until a look at everything finds no difference. Raises LabError with those of the last look."""
    found: list[str] = []

    def agreed() -> bool:
        found[:] = look()
        return not found

    try:
        wait_for("agreement", agreed, timeout=timeout, period=0.25)
    except LabError as error:
        if found:
            raise LabError("\n  ".join([f"not in agreement after {timeout:g} s:", *found])) from error
        raise


def compare(state: State) -> list[str]:
    """The differences within one look at everything."""
    handled = {
        (item["metadata"]["namespace"], item["metadata"]["name"]): item
        for item in state.services
        if item["spec"]["type"] == "LoadBalancer" and item["spec"].get("loadBalancerClass") in HANDLED_CLASSES
    }
    takers = traffic_nodes(state.nodes)
    local = {key: _local_nodes(key, state.slices) for key, service in handled.items() if _is_local(service)}
    wanted = {key: local.get(key, frozenset(takers)) & takers.keys() for key in handled}
    backends = {
        key: [Node(takers[name], state.macs.get(name, "")) for name in sorted(names)] for key, names in wanted.items()
    }
    guests = [balancer for balancer in state.balancers if not is_for_machines(balancer)]
    machines = machines_behind(state.balancers, state.machines)
    neighbours = fixed(machines, state.tenants, state.machines, state.balancers)
    return [
        *_services_and_balancers(handled, guests),
        *_plain_services(state.services),
        *_endpoint_nodes(local, guests),
        *_nodes(takers, state.tenants),
        *_balancers_and_blocks(state.balancers, state.blocks),
        *_pools_and_blocks(state.pools, state.blocks),
        *balancers_and_kernel(state.up, state.balancers, {**backends, **machines}, neighbours, state.kernel),
    ]


def traffic_nodes(nodes: list[Object]) -> dict[str, frozenset[str]]:
    """The nodes that take traffic with their addresses, by Kubernetes' own rules (KEP-1143, KEP-3458)."""
    return {
        node["metadata"]["name"]: frozenset(addresses)
        for node in nodes
        if not node["metadata"].get("deletionTimestamp")
        and not any(label in node["metadata"].get("labels", {}) for label in EXCLUDED)
        and not any(taint["key"] == "ToBeDeletedByClusterAutoscaler" for taint in node["spec"].get("taints", []))
        and (addresses := [a["address"] for a in node["status"].get("addresses", []) if a["type"] == "InternalIP"])
    }


def _is_local(service: Object) -> bool:
    return bool(service["spec"].get("externalTrafficPolicy") == "Local")


def _local_nodes(key: ServiceName, slices: list[Object]) -> frozenset[str]:
    """The nodes with ready endpoints; where there is none, those whose endpoints serve to their end (KEP-1669)."""
    endpoints = [
        (endpoint["nodeName"], endpoint.get("conditions", {}))
        for piece in slices
        if (piece["metadata"]["namespace"], piece["metadata"].get("labels", {}).get("kubernetes.io/service-name"))
        == key
        for endpoint in piece.get("endpoints") or []
        if endpoint.get("nodeName")
    ]
    ready = frozenset(name for name, conditions in endpoints if conditions.get("ready") is not False)
    return ready or frozenset(name for name, c in endpoints if c.get("serving") and c.get("terminating"))


def _services_and_balancers(services: Mapping[ServiceName, Object], balancers: list[Object]) -> Iterator[str]:
    by_service = _by_service(balancers)
    for key in sorted(by_service.keys() - services.keys()):
        yield f"host: {', '.join(map(_name, by_service[key]))} stands for no Service (of {'/'.join(key)})"
    for key, service in sorted(services.items()):
        found = by_service.get(key, [])
        if service["metadata"].get("deletionTimestamp"):
            yield f"guest: Service {'/'.join(key)} is still being deleted"
        elif len(found) != 1:
            yield f"guest: Service {'/'.join(key)} has {len(found)} LoadBalancers on the host"
        else:
            yield from _specs("/".join(key), service, found[0])
            yield from _statuses("/".join(key), service, found[0])


def _specs(name: str, service: Object, balancer: Object) -> Iterator[str]:
    """What the Service asks for, and what the LoadBalancer says that it does."""
    asked, made = service["spec"], balancer["spec"]
    if (uid := made["service"]["uid"]) != service["metadata"]["uid"]:
        yield f"host: Service {name} has UID {service['metadata']['uid']}, its LoadBalancer is for {uid}"
    if balancer["metadata"]["namespace"] != TENANT_NAMESPACE:
        yield f"host: {_name(balancer)} is not in the tenant's namespace"
    if (cluster := balancer["metadata"].get("labels", {}).get("cloudprovider.harvesterhci.io/cluster")) != TENANT:
        yield f"host: {_name(balancer)} is of the cluster {cluster}"
    wanted_ports = sorted((p.get("name", ""), p["protocol"], p["port"], p.get("nodePort")) for p in asked["ports"])
    listeners = made.get("listeners", [])
    made_ports = sorted(
        (p.get("name", ""), p.get("protocol", "TCP"), p["port"], p.get("backendPort")) for p in listeners
    )
    if wanted_ports != made_ports:
        yield f"host: Service {name} has ports {wanted_ports}, its LoadBalancer {made_ports}"
    for what, default in (("externalTrafficPolicy", "Cluster"), ("sessionAffinity", "None")):
        if asked.get(what, default) != made.get(what, default):
            yield f"host: Service {name} has {what} {asked.get(what)}, its LoadBalancer {made.get(what)}"
    if asked.get("healthCheckNodePort") != made.get("healthCheckNodePort"):
        yield f"host: Service {name} has another healthCheckNodePort than its LoadBalancer"
    wanted_sources = set(asked.get("loadBalancerSourceRanges", []))
    if wanted_sources != set(made.get("sourceRanges", [])):
        told = sorted(made.get("sourceRanges", []))
        yield f"host: Service {name} is open to {sorted(wanted_sources)}, its LoadBalancer to {told}"


def _statuses(name: str, service: Object, balancer: Object) -> Iterator[str]:
    """What the LoadBalancer has, and what the Service shows."""
    for item, place, finalizer in (
        (service, "guest: Service", SERVICE_FINALIZER),
        (balancer, "host: LoadBalancer of", BALANCER_FINALIZER),
    ):
        if finalizer not in item["metadata"].get("finalizers", []):
            yield f"{place} {name} lacks the finalizer {finalizer}"
    ingress = service["status"].get("loadBalancer", {}).get("ingress", [])
    shown, given = [entry.get("ip") for entry in ingress], _addresses(balancer)
    if shown != given:
        yield f"guest: Service {name} shows {shown or 'no address'}, its LoadBalancer has {given or 'none'}"
    if modes := {entry.get("ipMode") for entry in ingress} - {"VIP"}:
        yield f"guest: Service {name} shows ipMode {modes}"
    status = balancer.get("status", {})
    first = given[0] if given else ""
    recorded = (status.get("address", ""), status.get("allocatedAddress", {}).get("ip", ""))
    if recorded != (first, first):
        yield f"host: LoadBalancer of {name} has {given or 'no address'}, and records {recorded}"
    allocated, ready = _condition(balancer, "Allocated"), _condition(balancer, "Ready")
    if allocated != str(bool(given)):
        yield f"host: LoadBalancer of {name} has {given or 'no address'}, and its condition Allocated is {allocated}"
    if (told := _condition(service, SERVICE_READY)) != ready or ready not in {"True", "False"}:
        yield f"guest: Service {name} says {told} of being ready, its LoadBalancer {ready}"


def _plain_services(services: list[Object]) -> Iterator[str]:
    for service in services:
        if service["spec"]["type"] == "LoadBalancer":
            continue
        if service["status"].get("loadBalancer", {}).get("ingress"):
            yield f"guest: {_name(service)} is of type {service['spec']['type']} and still shows an address"
        if service["metadata"].get("finalizers"):
            yield f"guest: {_name(service)} is of type {service['spec']['type']} and still has a finalizer"


def _endpoint_nodes(local: Mapping[ServiceName, frozenset[str]], balancers: list[Object]) -> Iterator[str]:
    """Policy Local: the nodes with endpoints, as the host knows them; of the others it needs to know none."""
    for key, found in sorted(_by_service(balancers).items()):
        nodes = sorted(local.get(key, ()))
        for balancer in found:
            if (told := sorted(balancer["spec"].get("endpointNodes", []))) != nodes:
                yield f"host: LoadBalancer of {'/'.join(key)} names the endpoints' nodes {told}, not {nodes}"


def _nodes(takers: Mapping[str, frozenset[str]], tenants: list[Object]) -> Iterator[str]:
    if not tenants:
        yield "host: there is no GuestCluster"
    for tenant in tenants:
        told = {n["name"]: frozenset(n["addresses"]) for n in tenant.get("status", {}).get("nodes", [])}
        if told != takers:
            yield f"host: GuestCluster {_name(tenant)} has the nodes {_listed(told)}, not {_listed(takers)}"


def _balancers_and_blocks(balancers: list[Object], blocks: list[Object]) -> Iterator[str]:
    """Whoever has an address is recorded for it, in the pool that it is from; a leased one is in none."""
    holders: dict[str, set[tuple[str, str, str]]] = {}
    for block in blocks:
        pool = block["spec"]["pool"]
        for address, allocation in block["spec"].get("allocations", {}).items():
            if address in holders:
                yield f"pools: {address} is handed out twice"
            sharers = allocation.get("sharers", {}).items()
            holders[address] = {(o, u, pool) for o, u in [(allocation["owner"], allocation.get("uid", "")), *sharers]}
    wanted: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for balancer in balancers:
        status, name = balancer.get("status", {}), _name(balancer)
        leased = {status["lease"]["ip"]} if "lease" in status else set()
        entries = status.get("addresses", [])
        if (by_dhcp := {entry["ip"] for entry in entries if not entry.get("ipPool")}) != leased:
            yield f"host: {name} has {sorted(by_dhcp)} by DHCP, and a lease of {sorted(leased)}"
        if status.get("nextAddresses"):
            yield f"host: {name} is still on its way to {status['nextAddresses'][0]['ip']}"
        if strange := {entry["ip"] for entry in status.get("foreignAddresses", [])} - {e["ip"] for e in entries}:
            yield f"host: {name} still names {sorted(strange)}, which somebody else has"
        for entry in entries:
            if entry.get("ipPool"):
                wanted[entry["ip"]].add((name, balancer["metadata"]["uid"], entry["ipPool"]))
    for address in sorted(holders.keys() | wanted.keys()):
        if holders.get(address) != wanted.get(address):
            held, used = (sorted(found.get(address, ())) for found in (holders, wanted))
            yield f"pools: {address} is held by {_people(held)}, used by {_people(used)}"


def _people(found: list[tuple[str, str, str]]) -> str:
    return " and ".join(map(str, found)) or "None"


def _pools_and_blocks(pools: list[Object], blocks: list[Object]) -> Iterator[str]:
    """A pool's status is the sum of its blocks."""
    of_pool: dict[str, list[Object]] = defaultdict(list)
    for block in blocks:
        of_pool[block["spec"]["pool"]].append(block)
    for stray in sorted(of_pool.keys() - {pool["metadata"]["name"] for pool in pools}):
        yield f"pools: there are blocks of {stray}, which is no pool"
    for pool in pools:
        name, status = pool["metadata"]["name"], pool.get("status", {})
        allocated: dict[str, str] = {}
        history: dict[str, str] = {}
        for block in of_pool[name]:
            of_block = block["spec"].get("allocations", {})
            allocated |= {address: allocation["owner"] for address, allocation in of_block.items()}
            history |= block["spec"].get("history", {})
            first = int(ip_address(block["spec"]["first"]))
            for address in of_block:
                if not first <= int(ip_address(address)) < first + BLOCK_SIZE:
                    yield f"pools: {address} of {name} stands in the block of {block['spec']['first']}"
        for address in sorted(allocated):
            if not any(_holds(one, address) for one in pool["spec"]["ranges"]):
                yield f"pools: {address} is not in the ranges of {name}, which has handed it out"
        total = sum(_size(one) for one in pool["spec"]["ranges"])
        set_aside = {address for block in of_pool[name] for address in block["spec"].get("conflicts", {})}
        kept = {one["address"] for one in pool["spec"].get("reservations", [])}
        available = total - len(allocated.keys() | set_aside | kept)
        for what, value in (("total", total), ("available", available)):
            if status.get(what) != value:
                yield f"pools: the status of {name} says {what} {status.get(what)}, the blocks {value}"
        for what, entries in (("allocated", allocated), ("allocatedHistory", history)):
            told = status.get(what, {})
            if told.items() - entries.items() or len(told) != min(len(entries), MAP_LIMIT):
                yield f"pools: the status of {name} says {what} {_odd(told, entries)} otherwise than the blocks"
        conditions = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
        nearly = (total - available) * 100 >= pool["spec"].get("nearlyFullPercent", 90) * total
        for kind, holds in (("Full", available == 0), ("NearlyFull", nearly)):
            if (kind in conditions) != holds:
                yield f"pools: the status of {name} says that it is{'' if kind in conditions else ' not'} {kind}"
        cut = max(len(allocated), len(history)) > MAP_LIMIT
        if bool(status.get("truncated")) != cut:
            yield f"pools: the status of {name} says that it is{'' if not cut else ' not'} cut"


def _bounds(one: Object) -> tuple[int, int]:
    """First and last address of a range; what is not given is the subnet's first and last host."""
    subnet = ip_network(one["subnet"], strict=False)
    first, last = one.get("rangeStart") or subnet[1], one.get("rangeEnd") or subnet[-2]
    return int(ip_address(first)), int(ip_address(last))


def _holds(one: Object, address: str) -> bool:
    first, last = _bounds(one)
    return first <= int(ip_address(address)) <= last and address != one.get("gateway")


def _size(one: Object) -> int:
    first, last = _bounds(one)
    gateway = one.get("gateway") or str(ip_network(one["subnet"], strict=False)[1])
    return last - first + 1 - (first <= int(ip_address(gateway)) <= last)


def _odd(told: Mapping[str, str], entries: Mapping[str, str]) -> list[str]:
    return sorted(address for address, _ in told.items() ^ entries.items())


def _by_service(balancers: list[Object]) -> dict[ServiceName, list[Object]]:
    found: dict[ServiceName, list[Object]] = defaultdict(list)
    for balancer in balancers:
        reference = balancer["spec"].get("service", {})
        found[reference.get("namespace", ""), reference.get("name", "")].append(balancer)
    return dict(found)


def _condition(item: Object, kind: str) -> str:
    """The status of a condition; "" without it."""
    conditions = item.get("status", {}).get("conditions", [])
    return next((str(c["status"]) for c in conditions if c["type"] == kind), "")


def _listed(nodes: Mapping[str, frozenset[str]]) -> list[str]:
    return [f"{name} {' '.join(sorted(addresses))}" for name, addresses in sorted(nodes.items())]


def _addresses(balancer: Object) -> list[str]:
    return [entry["ip"] for entry in balancer.get("status", {}).get("addresses", [])]


def _name(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"
