"""Whether both clusters, the pools, the kernel and the link say the same: compared exactly, every difference told.

Reads objects as JSON and rules as ``nft`` shows them; shares no code with the programs that it checks.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.client import Object
from tests.lab.lab import TENANT_NAMESPACE, Lab
from tests.lab.process import LabError, wait_for

LOADBALANCERS = "/apis/loadbalancer.harvesterhci.io/v1beta1/loadbalancers"
BLOCKS = "/apis/loadbalancer.harvesterhci.io/v1beta1/ipblocks"
HANDLED_CLASSES = (None, "cloudprovider.harvesterhci.io/load-balancer")
EXCLUDED = (
    "node.kubernetes.io/exclude-from-external-load-balancers",
    "service.kubernetes.io/exclude-from-external-load-balancers",
)
GROUP_MASK = 0x00FFFFFF
AGREEMENT_LIMIT_SECONDS = 20.0

Listener = tuple[str, str, int]
"""(address, "tcp" or "udp", port)."""


@dataclass
class Kernel:
    """What the agent's namespace really does."""

    addresses: set[str] = field(default_factory=set)
    backends: dict[Listener, frozenset[str]] = field(default_factory=dict)
    ports: dict[Listener, int] = field(default_factory=dict)
    unused_groups: set[int] = field(default_factory=set)


def differences(lab: Lab) -> list[str]:
    """Every sentence on which two of the places disagree; none when all is well."""
    services = {
        (item["metadata"]["namespace"], item["metadata"]["name"]): item
        for item in lab.guest_plane.api.items("/api/v1/services")
        if item["spec"]["type"] == "LoadBalancer" and item["spec"].get("loadBalancerClass") in HANDLED_CLASSES
    }
    nodes = eligible_nodes(lab.guest_plane.api.items("/api/v1/nodes"))
    balancers = lab.host_plane.api.items(LOADBALANCERS)
    kernel = read_kernel(lab)
    return [
        *_services_and_balancers(services, balancers),
        *_plain_services(lab.guest_plane.api.items("/api/v1/services")),
        *_balancers_and_blocks(balancers, lab.host_plane.api.items(BLOCKS)),
        *_balancers_and_kernel(balancers, nodes, kernel),
    ]


def wait_until_agreed(lab: Lab, timeout: float = AGREEMENT_LIMIT_SECONDS) -> None:
    """Wait until nothing differs. Raises LabError with every difference that is left."""
    found: list[str] = []

    def agreed() -> bool:
        found[:] = differences(lab)
        return not found

    try:
        wait_for("agreement", agreed, timeout=timeout, period=0.25)
    except LabError as error:
        if found:
            raise LabError("\n  ".join([f"not in agreement after {timeout:g} s:", *found])) from error
        raise


def eligible_nodes(nodes: list[Object]) -> frozenset[str]:
    """Addresses of the nodes that take traffic, by Kubernetes' own rules (KEP-1143, KEP-3458)."""
    return frozenset(
        address["address"]
        for node in nodes
        if not node["metadata"].get("deletionTimestamp")
        and not any(label in node["metadata"].get("labels", {}) for label in EXCLUDED)
        and not any(taint["key"] == "ToBeDeletedByClusterAutoscaler" for taint in node["spec"].get("taints", []))
        for address in node["status"].get("addresses", [])
        if address["type"] == "InternalIP"
    )


def _services_and_balancers(services: dict[tuple[str, str], Object], balancers: list[Object]) -> Iterator[str]:
    by_service: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for balancer in balancers:
        reference = balancer["spec"].get("service", {})
        by_service[reference.get("namespace", ""), reference.get("name", "")].append(balancer)
    for key in sorted(by_service.keys() - services.keys()):
        yield f"host: {', '.join(map(_name, by_service[key]))} stands for no Service (of {'/'.join(key)})"
    for key, service in sorted(services.items()):
        found = by_service.get(key, [])
        if service["metadata"].get("deletionTimestamp"):
            yield f"guest: Service {'/'.join(key)} is still being deleted"
        elif len(found) != 1:
            yield f"guest: Service {'/'.join(key)} has {len(found)} LoadBalancers on the host"
        else:
            yield from _pair("/".join(key), service, found[0])


def _pair(name: str, service: Object, balancer: Object) -> Iterator[str]:
    uid = balancer["spec"]["service"]["uid"]
    if uid != service["metadata"]["uid"]:
        yield f"Service {name} has UID {service['metadata']['uid']}, its LoadBalancer is for {uid}"
    if balancer["metadata"]["namespace"] != TENANT_NAMESPACE:
        yield f"host: {_name(balancer)} is not in the tenant's namespace"
    wanted = {(p["protocol"], p["port"], p.get("nodePort")) for p in service["spec"]["ports"]}
    made = {(p.get("protocol", "TCP"), p["port"], p.get("backendPort")) for p in balancer["spec"].get("listeners", [])}
    if wanted != made:
        yield f"Service {name} has ports {sorted(wanted)}, its LoadBalancer {sorted(made)}"
    shown = [ingress.get("ip") for ingress in service["status"].get("loadBalancer", {}).get("ingress", [])]
    given = _addresses(balancer)
    if shown != given:
        yield f"Service {name} shows {shown}, its LoadBalancer has {given}"
    modes = {ingress.get("ipMode") for ingress in service["status"].get("loadBalancer", {}).get("ingress", [])}
    if modes - {"VIP"}:
        yield f"Service {name} shows ipMode {modes}"


def _plain_services(services: list[Object]) -> Iterator[str]:
    for service in services:
        if service["spec"]["type"] == "LoadBalancer":
            continue
        if service["status"].get("loadBalancer", {}).get("ingress"):
            yield f"guest: {_name(service)} is of type {service['spec']['type']} and still shows an address"
        if service["metadata"].get("finalizers"):
            yield f"guest: {_name(service)} is of type {service['spec']['type']} and still has a finalizer"


def _balancers_and_blocks(balancers: list[Object], blocks: list[Object]) -> Iterator[str]:
    holders: dict[str, tuple[str, str]] = {}
    for block in blocks:
        for address, allocation in block["spec"].get("allocations", {}).items():
            if allocation["owner"].startswith("agent/"):
                continue
            if address in holders:
                yield f"pools: {address} is handed out twice"
            holders[address] = (allocation["owner"], allocation.get("uid", ""))
    wanted: dict[str, tuple[str, str]] = {}
    for balancer in balancers:
        for address in _addresses(balancer):
            if address in wanted:
                yield f"host: {address} belongs to both {wanted[address][0]} and {_name(balancer)}"
            wanted[address] = (_name(balancer), balancer["metadata"]["uid"])
    for address in sorted(holders.keys() | wanted.keys()):
        if holders.get(address) != wanted.get(address):
            yield f"pools: {address} is held by {holders.get(address)}, used by {wanted.get(address)}"


def _balancers_and_kernel(balancers: list[Object], nodes: frozenset[str], kernel: Kernel) -> Iterator[str]:
    backends: dict[Listener, frozenset[str]] = {}
    ports: dict[Listener, int] = {}
    for balancer in balancers:
        if balancer["metadata"].get("deletionTimestamp"):
            yield f"host: {_name(balancer)} is still being deleted"
        holder = balancer.get("status", {}).get("holder", {})
        if holder.get("addresses", []) != _addresses(balancer):
            yield f"host: {_name(balancer)} has {_addresses(balancer)}, its holder {holder.get('addresses', [])}"
        if holder.get("generation") != balancer["metadata"]["generation"]:
            yield (
                f"host: {_name(balancer)} is at generation {balancer['metadata']['generation']}, "
                f"the kernel at {holder.get('generation')}"
            )
        for address in _addresses(balancer):
            for port in balancer["spec"].get("listeners", []):
                listener = (address, port.get("protocol", "TCP").lower(), port["port"])
                backends[listener] = nodes
                ports[listener] = port["backendPort"]
    addresses = {address for balancer in balancers for address in _addresses(balancer)}
    if addresses != kernel.addresses:
        more, less = sorted(kernel.addresses - addresses), sorted(addresses - kernel.addresses)
        yield f"link: answers for {more} too, and not for {less}"
    for listener in sorted(backends.keys() | kernel.backends.keys()):
        if backends.get(listener) != kernel.backends.get(listener):
            yield (
                f"kernel: {listener} goes to {_sorted(kernel.backends.get(listener))}, "
                f"not to {_sorted(backends.get(listener))}"
            )
    for listener in sorted(ports.keys() | kernel.ports.keys()):
        if ports.get(listener) != kernel.ports.get(listener):
            yield f"kernel: {listener} goes to port {kernel.ports.get(listener)}, not {ports.get(listener)}"
    if kernel.unused_groups:
        yield f"kernel: groups {sorted(kernel.unused_groups)} are used by no listener"


def _sorted(addresses: frozenset[str] | None) -> list[str] | None:
    return None if addresses is None else sorted(addresses)


def _addresses(balancer: Object) -> list[str]:
    return [entry["ip"] for entry in balancer.get("status", {}).get("addresses", [])]


def _name(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def read_kernel(lab: Lab) -> Kernel:
    """What the agent's namespace has in its maps and on its link; nothing where there is no namespace."""
    kernel = Kernel(addresses=lab.addresses_on_link())
    if not Path(f"/run/netns/{lab.segment.name}").exists():
        return kernel
    ruleset = json.loads(lab.segment.run("nft", "-j", "list", "ruleset"))["nftables"]
    maps: dict[str, list[Any]] = {item["map"]["name"]: item["map"].get("elem", []) for item in ruleset if "map" in item}
    groups: dict[int, set[str]] = defaultdict(set)
    for name, elements in maps.items():
        if name.startswith("slots_"):
            for slot, node in elements:
                groups[_key(slot)[0]].add(node)
    used: set[int] = set()
    for element, mark in maps.get("listeners", []):
        address, protocol, port = _key(element)
        group = mark & GROUP_MASK
        used.add(group)
        kernel.backends[address, protocol, port] = frozenset(groups[group]) if group else frozenset()
    for element, target in maps.get("ports", []):
        address, protocol, port = _key(element)
        kernel.ports[address, protocol, port] = target
    kernel.unused_groups = groups.keys() - used
    return kernel


def _key(element: Any) -> list[Any]:
    """The parts of a concatenated key, with or without a counter around it (libnftables-json(5))."""
    value = element["elem"]["val"] if "elem" in element else element
    parts: list[Any] = value["concat"]
    return parts
