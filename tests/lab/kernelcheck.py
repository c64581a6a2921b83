"""The kernel's part of the comparison: does the host forward as the LoadBalancers and the guest's nodes ask?"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.lab.client import Object
from tests.lab.groupcheck import dsr_groups, unused, whole_table
from tests.lab.snapshot import BY_CLIENT, GROUP_MASK, PHASES, RESTRICTED, Kernel, Listener, Rules

MARKS = {BY_CLIENT: "choosing by the client's address", RESTRICTED: "looking at source ranges"}


BalancerName = tuple[str, str]
"""Namespace and name of the Service that a LoadBalancer stands for; without one, ("LoadBalancer", "NAMESPACE/NAME")."""


class Node(NamedTuple):
    """A node of the guest, or a virtual machine, as the host's kernel may know it. ``direct``: it takes frames for
    the address as they are."""

    addresses: frozenset[str]
    mac: str
    direct: bool = True


@dataclass(frozen=True)
class Wanted:
    """What a listener should do. ``nodes``: their addresses, in mode dsr their MACs; ``port``: None in mode dsr;
    ``flags``: the bits of its mark beside the group."""

    nodes: frozenset[str]
    port: int | None
    flags: int
    sources: frozenset[str]


@dataclass
class _Wishes:
    """Of all LoadBalancers together."""

    addresses: set[str] = field(default_factory=set)
    nat: dict[Listener, Wanted] = field(default_factory=dict)
    dsr: dict[Listener, Wanted] = field(default_factory=dict)


def balancers_and_kernel(
    up: Mapping[str, str],
    balancers: list[Object],
    backends: Mapping[BalancerName, Collection[Node]],
    fixed: Mapping[str, str],
    kernel: Kernel,
) -> Iterator[str]:
    """``up``: the host that has each address up; ``backends``: the nodes, or machines, that should get the traffic;
    ``fixed``: the addresses that should go to one MAC alone."""
    wishes = _Wishes()
    for balancer in balancers:
        nodes = backends.get(key_of(balancer), ())
        _add(wishes, balancer, nodes)
        yield from _holder(up, balancer, nodes)
    if wishes.addresses != kernel.addresses:
        more, less = sorted(kernel.addresses - wishes.addresses), sorted(wishes.addresses - kernel.addresses)
        yield f"link: answers for {more} too, and not for {less}"
    if kernel.fixed != fixed:
        yield f"kernel: the fixed neighbours are {kernel.fixed}, not {dict(fixed)}"
    yield from _listeners(wishes.nat, kernel.nat)
    # A listener that has come from dsr to nat is in both for a while: its flows that are under way need that.
    passing = {one for one in wishes.nat if not kernel.dsr.listeners.get(one, 0) & GROUP_MASK}
    yield from _listeners(wishes.dsr, kernel.dsr, passing=passing)
    yield from _nat_groups(kernel.nat)
    yield from dsr_groups(kernel.dsr)
    for rules in (kernel.nat, kernel.dsr):
        for chain, count in sorted(rules.chains.items()):
            if not count:
                yield f"kernel: the chain {chain} has no rule"


def key_of(balancer: Object) -> BalancerName:
    reference = balancer["spec"].get("service")
    if reference is not None:
        return reference["namespace"], reference["name"]
    return "LoadBalancer", f"{balancer['metadata']['namespace']}/{balancer['metadata']['name']}"


def _add(wishes: _Wishes, balancer: Object, nodes: Collection[Node]) -> None:
    spec = balancer["spec"]
    ranges = spec.get("sourceRanges", [])
    flags = BY_CLIENT * (spec.get("sessionAffinity") == "ClientIP") | RESTRICTED * bool(ranges)
    for address in _addresses(balancer):
        wishes.addresses.add(address)
        # A range of the other family lets nobody in: RESTRICTED stands, and there is no source for it.
        sources = frozenset(one for one in ranges if _family(one) == _family(address))
        by_address = frozenset(a for node in nodes for a in node.addresses if _family(a) == _family(address))
        # All of the lab's nodes stand on its network.
        direct = all(node.direct for node in nodes) and (
            "service" in spec or all(x.get("backendPort") == x["port"] for x in spec["listeners"])
        )
        dsr = bool(by_address) and direct and spec.get("mode", "auto") != "nat"
        for port in spec.get("listeners", []):
            listener = (address, port.get("protocol", "TCP").lower(), port["port"])
            if dsr:
                wishes.dsr[listener] = Wanted(frozenset(node.mac for node in nodes), None, flags, sources)
            elif "backendPort" in port or not by_address:
                to = port.get("backendPort", port["port"])
                wishes.nat[listener] = Wanted(by_address, to, flags, sources)


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _holder(up: Mapping[str, str], balancer: Object, nodes: Collection[Node]) -> Iterator[str]:
    """Whether the agent says of itself what it should."""
    name, addresses = f"{balancer['metadata']['namespace']}/{balancer['metadata']['name']}", _addresses(balancer)
    if balancer["metadata"].get("deletionTimestamp"):
        yield f"host: {name} is still being deleted"
    holder = balancer.get("status", {}).get("holder", {})
    if holder.get("addresses", []) != addresses:
        yield f"host: {name} has {addresses}, its holder {holder.get('addresses', [])}"
    if not addresses:
        return
    if hosts := {up[a] for a in addresses if a in up} - {holder.get("node")}:
        yield f"host: {name} is held by {holder.get('node')}, not by {' and '.join(sorted(hosts))}"
    generation = balancer["metadata"]["generation"]
    if holder.get("generation") != generation:
        yield f"host: {name} is at generation {generation}, the kernel at {holder.get('generation')}"
    conditions = {c["type"]: c["status"] for c in balancer["status"].get("conditions", [])}
    for kind, value in (("Programmed", "True"), ("Ready", str(bool(nodes)))):
        if conditions.get(kind) != value:
            yield f"host: {name} says {conditions.get(kind)} of {kind}, not {value}"


def _listeners(wanted: Mapping[Listener, Wanted], rules: Rules, *, passing: Collection[Listener] = ()) -> Iterator[str]:
    """``passing``: listeners that may be there beside those wanted."""
    backends = rules.backends
    known = wanted.keys() | backends.keys() | rules.ports.keys() | rules.sources.keys()
    for listener in sorted(known - set(passing)):
        wish = wanted.get(listener)
        nodes, wanted_nodes = backends.get(listener), wish.nodes if wish else None
        if nodes != wanted_nodes:
            yield f"kernel: {listener} goes to {_sorted(nodes)}, not to {_sorted(wanted_nodes)}"
        port, wanted_port = rules.ports.get(listener), wish.port if wish else None
        if port != wanted_port:
            yield f"kernel: {listener} goes to port {port}, not {wanted_port}"
        sources, wanted_sources = rules.sources.get(listener, set()), wish.sources if wish else frozenset()
        if sources != wanted_sources:
            yield f"kernel: {listener} is open to {sorted(sources)}, not to {sorted(wanted_sources)}"
        if listener in rules.listeners and wish is not None:
            wrong = (rules.listeners[listener] & ~GROUP_MASK & ~PHASES) ^ wish.flags
            if wrong:
                told = [text for bit, text in MARKS.items() if wrong & bit] or [f"bits {wrong:#x} of its mark"]
                yield f"kernel: {listener} is wrong in {' and '.join(told)}"


def _nat_groups(rules: Rules) -> Iterator[str]:
    """A group has one whole table, both of its marks lead to the chains for its size, and somebody uses it."""
    used = {mark & GROUP_MASK for mark in rules.listeners.values()} - {0}
    held = {group for group, _ in rules.slots} | {mark & GROUP_MASK for _, mark in rules.tables}
    yield from unused(held - used)
    for group in sorted(used):
        size, wrong = whole_table(group, rules)
        yield from wrong
        if size:
            version = 6 if ":" in rules.slots[group, size][0] else 4
            for mark, chain in ((group, f"by_flow_{size}"), (group | BY_CLIENT, f"by_client_{size}")):
                if (found := rules.tables.get((version, mark))) != chain:
                    yield f"kernel: mark {mark:#x} leads to {found}, not to {chain}"


def _sorted(addresses: frozenset[str] | None) -> list[str] | None:
    return None if addresses is None else sorted(addresses)


def _addresses(balancer: Object) -> list[str]:
    return [entry["ip"] for entry in balancer.get("status", {}).get("addresses", [])]
