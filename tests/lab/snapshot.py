"""How everything stands: the objects of both clusters as JSON, and the agent's namespace as ``nft`` and ``ip`` tell it.

Nothing is judged here (that is checker.py), and no code is shared with the programs that are looked at.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from tests.lab.client import Object
from tests.lab.lab import Lab

LOADBALANCERS = "/apis/loadbalancer.harvesterhci.io/v1beta1/loadbalancers"
POOLS = "/apis/loadbalancer.harvesterhci.io/v1beta1/ippools"
BLOCKS = "/apis/loadbalancer.harvesterhci.io/v1beta1/ipblocks"
TENANTS = "/apis/cloudprovider.harvesterhci.io/v1beta1/guestclusters"

MACHINES = "/apis/kubevirt.io/v1/virtualmachineinstances"

GROUP_MASK = 0x00FFFFFF
BY_CLIENT = 0x80000000
RESTRICTED = 0x40000000
"""A listener's mark: the group of nodes; chosen by the client's address alone; source ranges are looked at."""
PHASES = 0x30000000
"""Of a listener in mode dsr: what is under way while it changes, for minutes after; not judged here."""
OLD = 0x08000000
"""Of a table's slot: of the nodes before a change."""

Listener = tuple[str, str, int]
"""(address, "tcp" or "udp", port)."""


_NAME = re.compile(r"(?P<kind>[a-z]+)(?P<version>[46]?)(?:_(?P<number>\d+))?")
"""Of a set or map: what it is, for which IP version where the table does not say, and a number."""


@dataclass
class Rules:
    """One mode's rules, both families together: their addresses and group numbers do not meet.

    ``listeners``: the marks; ``ports``: where on a node they lead (mode ``nat``); ``tables``: by IP version, mark to
    chain; ``slots``: by group and size of the table, slot to node; ``sources``: the clients that a listener is open
    to; ``chains``: how many rules a chain has, by "FAMILY CHAIN".

    Of mode ``dsr`` alone: ``steps``, as ``tables``, for what is looked up otherwise; ``members``: the MACs that a
    group's frames come back from; ``former``: groups that listeners come from; ``errors``: how many listeners ICMP
    errors are looked up for; ``fragments``: the addresses whose fragments are looked up; ``ways``: the chain that each
    IP version ("ip", "ip6") goes to.
    """

    listeners: dict[Listener, int] = field(default_factory=dict)
    ports: dict[Listener, int] = field(default_factory=dict)
    tables: dict[tuple[int, int], str] = field(default_factory=dict)
    slots: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)
    sources: dict[Listener, set[str]] = field(default_factory=dict)
    chains: dict[str, int] = field(default_factory=dict)
    steps: dict[tuple[int, int], str] = field(default_factory=dict)
    members: dict[int, set[str]] = field(default_factory=dict)
    former: dict[Listener, int] = field(default_factory=dict)
    errors: int = 0
    fragments: set[str] = field(default_factory=set)
    ways: dict[str, str] = field(default_factory=dict)

    @property
    def backends(self) -> dict[Listener, frozenset[str]]:
        """The nodes that each listener is sent to, by address or MAC; none: it is refused."""
        groups: dict[int, set[str]] = defaultdict(set)
        for (group, _), table in self.slots.items():
            groups[group].update(table.values())
        return {listener: frozenset(groups.get(mark & GROUP_MASK, ())) for listener, mark in self.listeners.items()}


@dataclass
class Kernel:
    """What the agent's namespace has on its link and in its rules; empty where there is no namespace."""

    addresses: set[str] = field(default_factory=set)
    nat: Rules = field(default_factory=Rules)
    dsr: Rules = field(default_factory=Rules)
    fixed: dict[str, str] = field(default_factory=dict)
    """The neighbours whose MAC is fixed."""

    @property
    def backends(self) -> dict[Listener, frozenset[str]]:
        """The nodes that each listener is sent to, by address (mode nat) or MAC (dsr)."""
        return self.dsr.backends | self.nat.backends

    def mode(self, listener: Listener) -> str:
        """ "nat" or "dsr"; "" where there is no such listener."""
        # What has come from dsr to nat stays in both for a while, and one that refuses is of mode nat.
        return "nat" if listener in self.nat.listeners else "dsr" if listener in self.dsr.listeners else ""


@dataclass
class State:
    """One look at everything. ``up``: the host that has each address up; ``macs``: of the guest's nodes, by name;
    ``kernel``: the rules, which all hosts have alike, and the addresses of all of them."""

    up: dict[str, str]
    macs: dict[str, str]
    services: list[Object]
    nodes: list[Object]
    slices: list[Object]
    balancers: list[Object]
    pools: list[Object]
    blocks: list[Object]
    tenants: list[Object]
    machines: list[Object]
    kernel: Kernel


def collect(lab: Lab) -> State:
    """Look at everything, one after the other: what changes meanwhile may not fit together. Raises OSError, ApiError,
    LabError."""
    guest, host = lab.guest_plane.api, lab.host_plane.api
    return State(
        up=dict.fromkeys(lab.addresses_on_link(), lab.host_node.name),
        macs={name: node.mac for name, node in lab.nodes.nodes.items()},
        services=guest.items("/api/v1/services"),
        nodes=guest.items("/api/v1/nodes"),
        slices=guest.items("/apis/discovery.k8s.io/v1/endpointslices"),
        balancers=host.items(LOADBALANCERS),
        pools=host.items(POOLS),
        blocks=host.items(BLOCKS),
        tenants=host.items(TENANTS),
        machines=host.items(MACHINES),
        kernel=read_kernel(lab),
    )


def read_kernel(lab: Lab) -> Kernel:
    """The agent's namespace of the management network."""
    if not Path(f"/run/netns/{lab.segment.name}").exists():
        return Kernel(lab.addresses_on_link(), fixed=fixed_neighbours(lab))
    ruleset = json.loads(lab.segment.run("nft", "-j", "list", "ruleset"))["nftables"]
    return replace(kernel_of(lab.addresses_on_link(), ruleset), fixed=fixed_neighbours(lab))


def kernel_of(addresses: set[str], ruleset: list[Object]) -> Kernel:
    """From the addresses of load balancers on the link, and the ruleset as libnftables' JSON."""
    return Kernel(addresses, _rules(ruleset, ("ip", "ip6")), _rules(ruleset, ("netdev",)))


def nodes_behind(lab: Lab, listener: Listener) -> frozenset[str] | None:
    """The names of the nodes that a listener is sent to, whatever the mode; None: there is no such listener."""
    found = read_kernel(lab).backends.get(listener)
    names = {a: name for name, node in lab.nodes.nodes.items() for a in (*node.pods.addresses, node.mac)}
    names |= {a: name for name, machine in lab.machines.items() for a in (*machine.addresses, machine.mac)}
    return None if found is None else frozenset(names.get(a, a) for a in found)


def fixed_neighbours(lab: Lab) -> dict[str, str]:
    """The addresses whose MAC is fixed in the agent's namespace."""
    if not Path(f"/run/netns/{lab.segment.name}").exists():
        return {}
    lines = (line.split() for line in lab.segment.run("ip", "neighbour", "show", "nud", "permanent").splitlines())
    return {words[0]: words[words.index("lladdr") + 1] for words in lines}


def _rules(ruleset: list[Object], families: Sequence[str]) -> Rules:
    found = Rules()
    for item in ruleset:
        ((kind, body),) = item.items()
        if body.get("family") not in families:
            continue
        if kind == "chain":
            found.chains.setdefault(f"{body['family']} {body['name']}", 0)
        elif kind == "rule":
            chain = f"{body['family']} {body['chain']}"
            found.chains[chain] = found.chains.get(chain, 0) + 1
        elif kind in ("map", "set") and (name := _NAME.fullmatch(body["name"])):
            version = int(name["version"] or {"ip": 4, "ip6": 6}.get(body["family"], 0))
            _read(found, name["kind"], version, int(name["number"] or 0), body.get("elem", []))
    return found


def _read(rules: Rules, kind: str, version: int, number: int, elements: list[Any]) -> None:
    """Take one set's or map's elements; which is what stands in cloudprovider/dataplane/ruleset_nat.py and
    ruleset_dsr.py. ``number``: the size of a table, the length of a prefix."""
    if kind in ("listeners", "ports", "former"):
        found: dict[Listener, int] = getattr(rules, kind)
        found |= {_listener(_parts(key)): value for key, value in elements}
    elif kind in ("tables", "steps"):
        targets: dict[tuple[int, int], str] = getattr(rules, kind)
        targets |= {(version, _plain(key)): verdict["goto"]["target"] for key, verdict in elements}
    elif kind == "slots":
        for key, node in elements:
            group, slot = _parts(key)
            if not group & OLD:
                rules.slots.setdefault((group, number), {})[slot] = node
    elif kind == "sources":
        for key in elements:
            *listener, network = _parts(key)
            rules.sources.setdefault(_listener(listener), set()).add(str(ip_network((network, number))))
    elif kind == "members":
        for key in elements:
            group, mac = _parts(key)
            rules.members.setdefault(group, set()).add(mac)
    elif kind == "errors":
        rules.errors += len(elements)
    elif kind == "ways":
        rules.ways |= {version: verdict["goto"]["target"] for version, verdict in elements}
    elif kind == "fragments":
        rules.fragments |= {_plain(key) for key, _ in elements}


def _listener(parts: list[Any]) -> Listener:
    address, protocol, port = parts
    return address, protocol, port


def _plain(element: Any) -> Any:
    """A key with or without a counter around it (libnftables-json(5))."""
    return element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element


def _parts(element: Any) -> list[Any]:
    parts: list[Any] = _plain(element)["concat"]
    return parts
