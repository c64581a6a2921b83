"""How everything stands: the objects of both clusters as JSON, and the agent's namespace as ``nft`` and ``ip`` tell it.

Nothing is judged here (that is checker.py), and no code is shared with the programs that are looked at.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests.lab.client import Object
from tests.lab.lab import Lab

LOADBALANCERS = "/apis/loadbalancer.harvesterhci.io/v1beta1/loadbalancers"
POOLS = "/apis/loadbalancer.harvesterhci.io/v1beta1/ippools"
BLOCKS = "/apis/loadbalancer.harvesterhci.io/v1beta1/ipblocks"
TENANTS = "/apis/cloudprovider.harvesterhci.io/v1beta1/guestclusters"

GROUP_MASK = 0x00FFFFFF
BY_CLIENT = 0x80000000
RESTRICTED = 0x40000000
"""A listener's mark: the group of nodes; chosen by the client's address alone; source ranges are looked at."""

Listener = tuple[str, str, int]
"""(address, "tcp" or "udp", port)."""


@dataclass
class Kernel:
    """What the agent's namespace has on its link and in its rules; empty where there is no namespace.

    ``listeners``: the marks; ``ports``: where on a node they lead; ``tables``: mark to chain; ``slots``: by group and
    size of the table, slot to node; ``sources``: the clients that a listener is open to; ``rules``: how many a chain
    has.
    """

    addresses: set[str] = field(default_factory=set)
    listeners: dict[Listener, int] = field(default_factory=dict)
    ports: dict[Listener, int] = field(default_factory=dict)
    tables: dict[int, str] = field(default_factory=dict)
    slots: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)
    sources: dict[Listener, set[str]] = field(default_factory=dict)
    rules: dict[str, int] = field(default_factory=dict)

    @property
    def backends(self) -> dict[Listener, frozenset[str]]:
        """The nodes that each listener is sent to; none: it is refused."""
        groups: dict[int, set[str]] = defaultdict(set)
        for (group, _), table in self.slots.items():
            groups[group].update(table.values())
        return {listener: frozenset(groups.get(mark & GROUP_MASK, ())) for listener, mark in self.listeners.items()}


@dataclass
class State:
    """One look at everything. ``host``: the name of the host node that the agent runs on."""

    host: str
    services: list[Object]
    nodes: list[Object]
    slices: list[Object]
    balancers: list[Object]
    pools: list[Object]
    blocks: list[Object]
    tenants: list[Object]
    kernel: Kernel


def collect(lab: Lab) -> State:
    """Look at everything, one after the other: what changes meanwhile may not fit together. Raises OSError, ApiError,
    LabError."""
    guest, host = lab.guest_plane.api, lab.host_plane.api
    return State(
        host=lab.host_node.name,
        services=guest.items("/api/v1/services"),
        nodes=guest.items("/api/v1/nodes"),
        slices=guest.items("/apis/discovery.k8s.io/v1/endpointslices"),
        balancers=host.items(LOADBALANCERS),
        pools=host.items(POOLS),
        blocks=host.items(BLOCKS),
        tenants=host.items(TENANTS),
        kernel=read_kernel(lab),
    )


def read_kernel(lab: Lab) -> Kernel:
    """The agent's namespace of the management network."""
    kernel = Kernel(addresses=lab.addresses_on_link())
    if not Path(f"/run/netns/{lab.segment.name}").exists():
        return kernel
    ruleset = json.loads(lab.segment.run("nft", "-j", "list", "ruleset"))["nftables"]
    rules = Counter(item["rule"]["chain"] for item in ruleset if "rule" in item and item["rule"]["family"] == "ip")
    chains = (item["chain"] for item in ruleset if "chain" in item)
    kernel.rules = {chain["name"]: rules[chain["name"]] for chain in chains if chain["family"] == "ip"}
    for item in ruleset:
        for kind in ("map", "set"):
            if kind in item:
                _read(kernel, item[kind]["name"], item[kind].get("elem", []))
    return kernel


def _read(kernel: Kernel, name: str, elements: list[Any]) -> None:
    """Take one set's or map's elements; which is what stands in cloudprovider/dataplane/ruleset.py."""
    if name == "listeners":
        kernel.listeners = {_listener(_parts(key)): mark for key, mark in elements}
    elif name == "ports":
        kernel.ports = {_listener(_parts(key)): port for key, port in elements}
    elif name == "tables":
        kernel.tables = {_plain(key): verdict["goto"]["target"] for key, verdict in elements}
    elif name.startswith("slots_"):
        size = int(name.removeprefix("slots_"))
        for key, node in elements:
            group, slot = _parts(key)
            kernel.slots.setdefault((group, size), {})[slot] = node
    elif name.startswith("sources_"):
        length = int(name.removeprefix("sources_"))
        for key in elements:
            *listener, network = _parts(key)
            kernel.sources.setdefault(_listener(listener), set()).add(str(IPv4Network((network, length))))


def _listener(parts: list[Any]) -> Listener:
    address, protocol, port = parts
    return address, protocol, port


def _plain(element: Any) -> Any:
    """A key with or without a counter around it (libnftables-json(5))."""
    return element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element


def _parts(element: Any) -> list[Any]:
    parts: list[Any] = _plain(element)["concat"]
    return parts
