"""FRR's configuration of what a host says, as text, and the commands that lead from one to another. Pure.

Two things keep a change small and without a moment in which something wrong is said. An address is one line
(``network``), which marks it with a number for all that is said of it; what each neighbor is told of such a number
stands in a route map. And route maps are never changed: their names are made of what they say, so another one comes
first, is put in place of the old one by one line, and then that one goes.

A host hears routes from nobody: what a neighbor says is denied. And it says nothing that is not marked.

A session carries addresses of its own IP version only. A router that passes on IPv6 by a session over IPv4 names a
link-local next hop (RFC 2545), which bgpd can't take without zebra; then it reads what is left of the message as
IPv4 routes, and ends the session (seen with 8.4). Where IPv4 is not spoken it leaves that alone.

Source: https://docs.frrouting.org/en/stable-8.4/bgp.html; what is written is what ``show running-config`` of bgpd 8.4
shows again, but for the order.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from cloudprovider.core.bgp import DEFAULT_PORT, DEFAULT_PREFERENCE, Announcement, Attributes, Neighbor, Speech

Config = Mapping[tuple[str, ...], tuple[str, ...]]
"""Lines by the section that they are in: ("router bgp 64512", "address-family ipv4 unicast")."""

NOBODY: Final = "cp-deny"
"""The route map that denies everything."""
CONNECT_RETRY: Final = 5
"""Seconds between two attempts to reach a router that does not answer."""

_FAMILIES: Final = {4: "address-family ipv4 unicast", 6: "address-family ipv6 unicast"}
_PREFIX: Final = "cp-"
"""Of our route maps' names."""
_MANY_HOPS: Final = 255


def config(speech: Speech | None) -> Config:
    """Return what bgpd is to be told; nothing for None."""
    if speech is None:
        return {}
    marks = {announcement: _mark(announcement) for announcement in dict.fromkeys(speech.routes.values())}
    sections: dict[tuple[str, ...], tuple[str, ...]] = {(f"route-map {NOBODY} deny 10",): ()}
    for number in sorted(set(marks.values())):
        sections[(f"route-map {_PREFIX}mark-{number} permit 10",)] = (f"set tag {number}",)
    outgoing: dict[str, str] = {}
    for neighbor in speech.neighbors:
        name, entries = _outgoing(neighbor.name, marks, speech)
        outgoing[neighbor.name] = name
        sections |= entries
    router = f"router bgp {speech.asn}"
    sections[(router,)] = tuple(_router(speech))
    for version, family in _FAMILIES.items():
        if any(neighbor.address.version == version for neighbor in speech.neighbors):
            sections[router, family] = tuple(_family(speech, version, marks, outgoing))
    return sections


def text(wanted: Config) -> str:
    """Return a configuration as FRR has it in a file."""
    lines: list[str] = []
    routers = [path for path in wanted if path[0].startswith("router ")]
    for path in [p for p in wanted if p not in routers]:
        lines += [path[0], *(f" {line}" for line in wanted[path]), "exit", "!"]
    for path in routers:
        if len(path) == 1:
            lines += [path[0], *(f" {line}" for line in wanted[path])]
        else:
            lines += [" !", f" {path[1]}", *(f"  {line}" for line in wanted[path]), " exit-address-family"]
    if routers:
        lines += ["exit", "!"]
    return "".join(f"{line}\n" for line in lines)


def parse(running: str) -> Config:
    """Read what ``show running-config`` shows, as far as it is ours to change: routers, and route maps of our names."""
    found: dict[tuple[str, ...], list[str]] = {}
    path: tuple[str, ...] = ()
    for raw in running.splitlines():
        line = raw.strip()
        if not line or line.startswith("!"):
            continue
        if not raw.startswith(" "):
            path = (line,) if line.startswith(("router bgp ", f"route-map {_PREFIX}")) else ()
            if path:
                found.setdefault(path, [])
        elif path and line.startswith("address-family "):
            path = (path[0], line)
            found.setdefault(path, [])
        elif line == "exit-address-family":
            path = path[:1]
        elif path:
            found[path].append(line)
    return {path: tuple(lines) for path, lines in found.items()}


def commands(current: Config, wanted: Config) -> list[str]:
    """Return what is to be said to bgpd, in its mode of configuration, to lead from one to the other: just what
    differs. A session whose terms change begins anew, the others are not touched."""
    said: list[str] = []
    for path, lines in wanted.items():
        if path[0].startswith("route-map ") and path not in current:
            said += [path[0], *lines, "exit"]
    router = next((path for path in wanted if len(path) == 1 and path[0].startswith("router ")), None)
    for path in current:
        if len(path) == 1 and path[0].startswith("router ") and path != router:
            said.append(f"no {path[0]}")
    if router is not None:
        said += _router_commands(router[0], current, wanted)
    for path in current:
        if path[0].startswith("route-map ") and path not in wanted:
            said.append(f"no {path[0]}")
    return said


def _router(speech: Speech) -> Iterator[str]:
    yield f"bgp router-id {speech.router_id}"
    yield "no bgp default ipv4-unicast"
    if speech.graceful:
        yield "bgp graceful-shutdown"
    # An address of ours need not be a route of the kernel's (and bgpd hears of none).
    yield "no bgp network import-check"
    for neighbor in speech.neighbors:
        yield from (f"neighbor {neighbor.address} {line}" for line in _session(neighbor, speech.asn))


def _session(neighbor: Neighbor, own_asn: int) -> Iterator[str]:
    yield f"remote-as {neighbor.asn}"
    yield f"description {neighbor.name}"
    if neighbor.port != DEFAULT_PORT:
        yield f"port {neighbor.port}"
    if neighbor.password:
        yield f"password {neighbor.password}"
    if neighbor.multi_hop and neighbor.asn != own_asn:
        yield f"ebgp-multihop {_MANY_HOPS}"
    # Load balancers' addresses are on the same link: the kernel might take one of them.
    yield f"update-source {neighbor.source}"
    yield f"timers {neighbor.keepalive} {neighbor.hold}"
    yield f"timers connect {CONNECT_RETRY}"


def _family(
    speech: Speech, version: int, marks: Mapping[Announcement, int], outgoing: Mapping[str, str]
) -> Iterator[str]:
    for vip in sorted((vip for vip in speech.routes if vip.version == version), key=int):
        yield f"network {vip}/{vip.max_prefixlen} route-map {_PREFIX}mark-{marks[speech.routes[vip]]}"
    for neighbor in (n for n in speech.neighbors if n.address.version == version):
        # What it may hear and say comes first.
        yield f"neighbor {neighbor.address} route-map {NOBODY} in"
        yield f"neighbor {neighbor.address} route-map {outgoing[neighbor.name]} out"
        yield f"neighbor {neighbor.address} activate"


def _outgoing(
    name: str, marks: Mapping[Announcement, int], speech: Speech
) -> tuple[str, dict[tuple[str, ...], tuple[str, ...]]]:
    """The route map of what a neighbor is told: its name, and its entries. What none of them matches, is not said."""
    entries: list[tuple[str, ...]] = []
    for announcement, number in sorted(marks.items(), key=lambda item: item[1]):
        attributes = dict(announcement).get(name)
        if attributes is not None:
            entries.append((f"match tag {number}", *_says(attributes, speech)))
    if not entries:
        return NOBODY, {}
    own = f"{_PREFIX}out-{zlib.crc32(repr(entries).encode()):08x}"
    return own, {(f"route-map {own} permit {10 * n}",): lines for n, lines in enumerate(entries, start=1)}


def _says(attributes: Attributes, speech: Speech) -> Iterator[str]:
    if attributes.communities:
        yield f"set community {' '.join(attributes.communities)}"
    if attributes.large_communities:
        yield f"set large-community {' '.join(attributes.large_communities)}"
    if attributes.local_preference != DEFAULT_PREFERENCE:
        yield f"set local-preference {attributes.local_preference}"
    if 4 in speech.next_hops:
        yield f"set ip next-hop {speech.next_hops[4]}"
    if 6 in speech.next_hops:
        yield f"set ipv6 next-hop global {speech.next_hops[6]}"


def _mark(announcement: Announcement) -> int:
    """A number for what is said of an address, of its content: it stays while others come and go. Not 0, which is
    none."""
    return zlib.crc32(repr(announcement).encode()) or 1


def _router_commands(router: str, current: Config, wanted: Config) -> list[str]:
    before, after = current.get((router,), ()), wanted[router,]
    gone = {
        neighbor
        for neighbor, lines in _by_neighbor(before).items()
        if set(lines) != set(_by_neighbor(after).get(neighbor, ()))
    }
    said = [f"no neighbor {neighbor}" for neighbor in sorted(gone)]
    said += _difference(_without(before, gone), after)
    for path in dict.fromkeys((*wanted, *current)):
        if len(path) == 2 and path[0] == router:
            inside = _difference(_without(current.get(path, ()), gone), wanted.get(path, ()))
            if inside:
                said += [path[1], *inside, "exit-address-family"]
    return [router, *said, "exit"] if said or (router,) not in current else []


def _difference(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """What is to be said inside a section: what goes, then what comes. A line that takes the place of one comes
    alone."""
    had, has = set(before), set(after)
    slots = {_slot(line) for line in after}
    gone = [f"no {_slot(line)}" for line in before if line not in has and _slot(line) not in slots]
    return [_undone(line) for line in gone] + [line for line in after if line not in had]


def _slot(line: str) -> str:
    """What there can be one of."""
    words = line.split()
    if words[0] == "network":
        return " ".join(words[:2])
    if words[0] == "neighbor" and words[2] == "route-map":
        return f"neighbor {words[1]} route-map {words[4]}"
    if words[:2] == ["bgp", "router-id"]:
        return "bgp router-id"
    return line


def _undone(line: str) -> str:
    return line.removeprefix("no no ")


def _by_neighbor(lines: Sequence[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        words = line.split()
        if words[0] == "neighbor":
            found.setdefault(words[1], []).append(line)
    return found


def _without(lines: Sequence[str], neighbors: set[str]) -> list[str]:
    return [line for line in lines if not (line.startswith("neighbor ") and line.split()[1] in neighbors)]
