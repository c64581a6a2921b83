"""The kernel's part of the comparison: does the host forward as the LoadBalancers and the guest's nodes ask?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.lab.client import Object
from tests.lab.snapshot import BY_CLIENT, GROUP_MASK, RESTRICTED, Kernel, Listener

MARKS = {BY_CLIENT: "choosing by the client's address", RESTRICTED: "looking at source ranges"}


@dataclass(frozen=True)
class Wanted:
    """What a listener should do. ``flags``: the bits of its mark beside the group."""

    nodes: frozenset[str]
    port: int
    flags: int
    sources: frozenset[str]


@dataclass
class _Wishes:
    """Of all LoadBalancers together."""

    addresses: set[str] = field(default_factory=set)
    listeners: dict[Listener, Wanted] = field(default_factory=dict)


def balancers_and_kernel(
    host: str,
    balancers: list[Object],
    backends: Mapping[tuple[str, str], frozenset[str]],
    kernel: Kernel,
) -> Iterator[str]:
    """``backends``: by namespace and name of the Service, the addresses of the nodes that should get its traffic."""
    wishes = _Wishes()
    for balancer in balancers:
        reference = balancer["spec"].get("service", {})
        nodes = backends.get((reference.get("namespace", ""), reference.get("name", "")), frozenset())
        _add(wishes, balancer, nodes)
        yield from _holder(host, balancer, nodes)
    if wishes.addresses != kernel.addresses:
        more, less = sorted(kernel.addresses - wishes.addresses), sorted(wishes.addresses - kernel.addresses)
        yield f"link: answers for {more} too, and not for {less}"
    yield from _listeners(wishes.listeners, kernel)
    yield from _groups(kernel)
    for chain, count in sorted(kernel.rules.items()):
        if not count:
            yield f"kernel: the chain {chain} has no rule"


def _add(wishes: _Wishes, balancer: Object, nodes: frozenset[str]) -> None:
    spec = balancer["spec"]
    sources = frozenset(spec.get("sourceRanges", []))
    flags = BY_CLIENT * (spec.get("sessionAffinity") == "ClientIP") | RESTRICTED * bool(sources)
    for address in _addresses(balancer):
        wishes.addresses.add(address)
        for port in spec.get("listeners", []):
            listener = (address, port.get("protocol", "TCP").lower(), port["port"])
            wishes.listeners[listener] = Wanted(nodes, port["backendPort"], flags, sources)


def _holder(host: str, balancer: Object, nodes: frozenset[str]) -> Iterator[str]:
    """Whether the agent says of itself what it should."""
    name, addresses = f"{balancer['metadata']['namespace']}/{balancer['metadata']['name']}", _addresses(balancer)
    if balancer["metadata"].get("deletionTimestamp"):
        yield f"host: {name} is still being deleted"
    holder = balancer.get("status", {}).get("holder", {})
    if holder.get("addresses", []) != addresses:
        yield f"host: {name} has {addresses}, its holder {holder.get('addresses', [])}"
    if not addresses:
        return
    if holder.get("node") != host:
        yield f"host: {name} is held by {holder.get('node')}, not by {host}"
    generation = balancer["metadata"]["generation"]
    if holder.get("generation") != generation:
        yield f"host: {name} is at generation {generation}, the kernel at {holder.get('generation')}"
    conditions = {c["type"]: c["status"] for c in balancer["status"].get("conditions", [])}
    for kind, value in (("Programmed", "True"), ("Ready", str(bool(nodes)))):
        if conditions.get(kind) != value:
            yield f"host: {name} says {conditions.get(kind)} of {kind}, not {value}"


def _listeners(wanted: Mapping[Listener, Wanted], kernel: Kernel) -> Iterator[str]:
    backends = kernel.backends
    for listener in sorted(wanted.keys() | backends.keys() | kernel.ports.keys() | kernel.sources.keys()):
        wish = wanted.get(listener)
        nodes, wanted_nodes = backends.get(listener), wish.nodes if wish else None
        if nodes != wanted_nodes:
            yield f"kernel: {listener} goes to {_sorted(nodes)}, not to {_sorted(wanted_nodes)}"
        port, wanted_port = kernel.ports.get(listener), wish.port if wish else None
        if port != wanted_port:
            yield f"kernel: {listener} goes to port {port}, not {wanted_port}"
        sources, wanted_sources = kernel.sources.get(listener, set()), wish.sources if wish else frozenset()
        if sources != wanted_sources:
            yield f"kernel: {listener} is open to {sorted(sources)}, not to {sorted(wanted_sources)}"
        if listener in kernel.listeners and wish is not None:
            wrong = (kernel.listeners[listener] & ~GROUP_MASK) ^ wish.flags
            if wrong:
                told = [text for bit, text in MARKS.items() if wrong & bit] or [f"bits {wrong:#x} of its mark"]
                yield f"kernel: {listener} is wrong in {' and '.join(told)}"


def _groups(kernel: Kernel) -> Iterator[str]:
    """A group has one whole table, both of its marks lead to the chains for its size, and somebody uses it."""
    used = {mark & GROUP_MASK for mark in kernel.listeners.values()} - {0}
    held = {group for group, _ in kernel.slots} | {mark & GROUP_MASK for mark in kernel.tables}
    if held - used:
        yield f"kernel: groups {sorted(held - used)} are used by no listener"
    for group in sorted(used):
        sizes = [size for held_group, size in kernel.slots if held_group == group]
        if len(sizes) != 1:
            yield f"kernel: group {group} has tables of the sizes {sizes}"
            continue
        (size,) = sizes
        if kernel.slots[group, size].keys() != set(range(size)):
            yield f"kernel: group {group} has {len(kernel.slots[group, size])} slots, not {size}"
        for mark, chain in ((group, f"by_flow_{size}"), (group | BY_CLIENT, f"by_client_{size}")):
            if kernel.tables.get(mark) != chain:
                yield f"kernel: mark {mark:#x} leads to {kernel.tables.get(mark)}, not to {chain}"


def _sorted(addresses: frozenset[str] | None) -> list[str] | None:
    return None if addresses is None else sorted(addresses)


def _addresses(balancer: Object) -> list[str]:
    return [entry["ip"] for entry in balancer.get("status", {}).get("addresses", [])]
