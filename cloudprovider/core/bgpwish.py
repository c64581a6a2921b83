"""From BGPPeers and BGPAdvertisements to what this host says, and what of them is wrong, in words. Pure.

What can't be done is left out and told; the rest is said all the same.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Final

from cloudprovider.core import communities
from cloudprovider.core.api.bgp import PASSWORDS_SECRET, BGPAdvertisement, BGPPeer
from cloudprovider.core.bgp import Announcement, Attributes, Neighbor, Speech, Watch
from cloudprovider.core.labels import any_matches
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.core.plan import IPAddress

_TOLD: Final = 3
"""So many names are listed in a message."""
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How this host stands on one network: its own addresses there, at most one an IP version, and the subnets that
    they are in."""

    addresses: Mapping[int, IPAddress] = field(default_factory=dict)
    subnets: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Host:
    """``labels``: its Node's. ``networks``: by name."""

    labels: Mapping[str, str]
    networks: Mapping[str, Standing]


@dataclass(frozen=True)
class Served:
    """An address whose rules this host's kernel has. ``pool``: "" where it is of none (DHCP)."""

    network: str
    vip: IPAddress
    pool: str


@dataclass(frozen=True, kw_only=True)
class Objects:
    """What operators have written. ``pools``: the labels of each; ``passwords``: what the Secret has, by key."""

    peers: tuple[BGPPeer, ...] = ()
    advertisements: tuple[BGPAdvertisement, ...] = ()
    pools: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Outcome:
    """What becomes of an advertisement here."""

    addresses: int = 0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """``speeches``: by network, where there is anybody to speak to. ``refused``: BGPPeers of this host that it does
    not speak to, and why. ``outcomes``: of the advertisements that are this host's."""

    speeches: Mapping[str, Speech] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


def wish(host: Host, objects: Objects, served: Collection[Served]) -> Wish:
    """Decide what is said of the addresses that are ``served``."""
    peers = sorted(objects.peers, key=lambda peer: peer.metadata.name)
    neighbors, refused = _neighbors(host, peers, objects.passwords)
    routes, outcomes = _routes(host, objects, neighbors, served)
    speeches = {}
    for network, (asn, there) in neighbors.items():
        own = host.networks[network].addresses
        speeches[network] = Speech(
            asn=asn,
            router_id=_router_id(own),
            next_hops=dict(own),
            neighbors=tuple(there),
            routes=routes.get(network, {}),
        )
    return Wish(speeches=speeches, refused=refused, outcomes=outcomes)


_Neighbors = dict[str, tuple[int, list[Neighbor]]]
"""By network: our AS number there, and to whom we speak."""


def _neighbors(host: Host, peers: Iterable[BGPPeer], passwords: Mapping[str, str]) -> tuple[_Neighbors, dict[str, str]]:
    found: _Neighbors = {}
    refused: dict[str, str] = {}
    for peer in peers:
        if not any_matches(peer.spec.node_selectors, host.labels):
            continue
        name, spec = peer.metadata.name, peer.spec
        neighbor = _neighbor(host, peer, passwords)
        if isinstance(neighbor, str):
            refused[name] = neighbor
            continue
        asn, others = found.setdefault(spec.network, (spec.my_asn, []))
        twin = next((other.name for other in others if other.address == neighbor.address), "")
        if asn != spec.my_asn:
            refused[name] = (
                f"spec.myASN {spec.my_asn}: on one network a host has one AS number, and by BGPPeer {others[0].name} it"
                f" is {asn}. Set the same in both."
            )
        elif twin:
            refused[name] = (
                f"spec.peerAddress {neighbor.address}: BGPPeer {twin} is of the same router. Delete one of the two."
            )
        else:
            others.append(neighbor)
    return found, refused


def _neighbor(host: Host, peer: BGPPeer, passwords: Mapping[str, str]) -> Neighbor | str:
    """The router that a BGPPeer names, or what is wrong with it."""
    spec = peer.spec
    standing = host.networks.get(spec.network)
    if standing is None:
        return (
            f"spec.network: this host does not stand on {_named(spec.network)}. Add it to the agent's networks file, or"
            " leave this host out by spec.nodeSelectors."
        )
    try:
        address = ip_address(spec.peer_address)
    except ValueError:
        return f'spec.peerAddress: "{spec.peer_address}" is no IP address. Write one, for example 192.0.2.1.'
    if problem := _unusable(address, standing, multi_hop=spec.ebgp_multi_hop, external=spec.peer_asn != spec.my_asn):
        return problem
    if spec.bfd is not None and spec.ebgp_multi_hop:
        return "spec.bfd: BFD is for a router on the network itself. Leave out bfd, or ebgpMultiHop."
    hold = _seconds(spec.hold_time)
    keepalive = _seconds(spec.keepalive_time) if spec.keepalive_time else (hold or 0) // 3
    if hold is None or hold in (1, 2) or hold > 65535:
        return f'spec.holdTime: "{spec.hold_time}" is neither "0s" nor from "3s" to "65535s". Write for example "90s".'
    if keepalive is None or (hold and not 0 < keepalive < hold):
        return f'spec.keepaliveTime: "{spec.keepalive_time}" is not shorter than spec.holdTime. Leave it out: a third.'
    password = passwords.get(spec.password_key, "") if spec.password_key else ""
    if spec.password_key and not password:
        return (
            f'spec.passwordKey: there is no key "{spec.password_key}" in Secret {SYSTEM}/{PASSWORDS_SECRET}. Put the'
            " password there."
        )
    if len(password.encode()) > _LONGEST_PASSWORD or not re.fullmatch(r"[!-~]*", password):
        return (
            f'spec.passwordKey: "{spec.password_key}" in Secret {SYSTEM}/{PASSWORDS_SECRET} is longer than'
            f" {_LONGEST_PASSWORD} characters, or has a space or other than ASCII in it. Take another password."
        )
    watch = Watch(interval=spec.bfd.interval, multiplier=spec.bfd.multiplier) if spec.bfd is not None else None
    return Neighbor(
        name=peer.metadata.name,
        address=address,
        asn=spec.peer_asn,
        source=standing.addresses[address.version],
        port=spec.peer_port,
        hold=hold,
        keepalive=keepalive,
        password=password,
        multi_hop=spec.ebgp_multi_hop,
        watch=watch,
    )


_LONGEST_PASSWORD: Final = 80
"""TCP_MD5SIG_MAXKEYLEN of Linux."""


def _unusable(address: IPAddress, standing: Standing, *, multi_hop: bool, external: bool) -> str:
    """Why no session can be had with a router of this address; "" where it can."""
    where = f"spec.peerAddress {address}"
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_loopback:
        return f"{where}: is no address that a router is reached by. Write its own on the network."
    if address in standing.addresses.values():
        return f"{where}: is this host's own. Write the router's."
    if address.version not in standing.addresses:
        key = "address" if address.version == 4 else "address6"
        return (
            f"{where}: this host has no IPv{address.version} address of its own on the network. Give it one: {key} in"
            " the agent's networks file."
        )
    if external and not multi_hop and not any(address in subnet for subnet in standing.subnets):
        subnets = ", ".join(map(str, standing.subnets))
        return f"{where}: is not on the network ({subnets}). Correct it, or set spec.ebgpMultiHop."
    return ""


def _routes(
    host: Host, objects: Objects, neighbors: _Neighbors, served: Collection[Served]
) -> tuple[Mapping[str, dict[IPAddress, Announcement]], dict[str, Outcome]]:
    pools = objects.pools
    peers = {peer.metadata.name for peer in objects.peers}
    by_pool: defaultdict[str, set[Served]] = defaultdict(set)
    for address in served:
        if address.pool:
            by_pool[address.pool].add(address)
    said: defaultdict[Served, dict[str, Attributes]] = defaultdict(dict)
    counts: defaultdict[str, set[Served]] = defaultdict(set)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    mine = [a for a in objects.advertisements if any_matches(a.spec.node_selectors, host.labels)]
    # The highest preference first: of several for one address it counts.
    for one in sorted(mine, key=lambda a: (-a.spec.local_preference, a.metadata.name)):
        name, spec = one.metadata.name, one.spec
        small, large, wrong = communities.split(spec.communities)
        problems[name] += _misnamed(one, peers, pools, wrong)
        attributes = Attributes(communities=small, large_communities=large, local_preference=spec.local_preference)
        chosen = {*spec.ip_pools, *_selected(one, pools)}
        unsayable: set[Served] = set()
        for address in sorted((a for pool in chosen for a in by_pool[pool]), key=lambda a: (a.network, str(a.vip))):
            there = neighbors.get(address.network, (0, []))[1]
            asked = [n for n in there if not spec.peers or n.name in spec.peers]
            to = [n.name for n in asked if n.address.version == address.vip.version]
            if not to:
                if asked:
                    unsayable.add(address)
                continue
            counts[name].add(address)
            for neighbor in to:
                before = said[address].get(neighbor)
                said[address][neighbor] = attributes if before is None else _both(before, attributes)
        if unsayable:
            version = min(address.vip.version for address in unsayable)
            problems[name].append(
                f"{len(unsayable)} addresses of IPv{version} are not said: no router is spoken to by IPv{version}, and"
                " each hears only of its own. Make a BGPPeer with its other address, too."
            )
    routes: defaultdict[str, dict[IPAddress, Announcement]] = defaultdict(dict)
    for address, to_whom in said.items():
        routes[address.network][address.vip] = tuple(sorted(to_whom.items()))
    outcomes = {
        one.metadata.name: Outcome(len(counts[one.metadata.name]), " ".join(problems[one.metadata.name]))
        for one in mine
    }
    return routes, outcomes


def _misnamed(
    one: BGPAdvertisement, peers: Collection[str], pools: Collection[str], wrong: Collection[str]
) -> Iterable[str]:
    """What an advertisement names that there is not."""
    if lacking := [name for name in one.spec.ip_pools if name not in pools]:
        yield f"spec.ipPools: there is no IPPool {_listed(lacking)}. Correct the name, or make it."
    if lacking := [name for name in one.spec.peers if name not in peers]:
        yield f"spec.peers: there is no BGPPeer {_listed(lacking)}. Correct the name, or make it."
    if wrong:
        yield (
            f'spec.communities: {_listed(wrong)} is none. Write "64512:100", "large:64512:1:2", or one of'
            f" {', '.join(sorted(communities.WELL_KNOWN))}."
        )


def _selected(one: BGPAdvertisement, pools: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """The pools that it chooses by labels, or all of them."""
    selectors = one.spec.ip_pool_selectors
    if not selectors and one.spec.ip_pools:
        return ()
    return [name for name, labels in pools.items() if any_matches(selectors, labels)]


def _both(first: Attributes, second: Attributes) -> Attributes:
    """Two advertisements of one address to one router: the communities of both, the preference of the first."""
    return Attributes(
        communities=tuple(sorted({*first.communities, *second.communities})),
        large_communities=tuple(sorted({*first.large_communities, *second.large_communities})),
        local_preference=first.local_preference,
    )


def _router_id(own: Mapping[int, IPAddress]) -> str:
    """What tells this host from others (RFC 4271 section 4.2, RFC 6286): its IPv4 address, else a number by its IPv6
    one."""
    return str(own[4] if 4 in own else IPv4Address(zlib.crc32(own[6].packed) | 1))


def _seconds(text: str) -> int | None:
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def _named(network: str) -> str:
    return f'the network "{network}"' if network else "the management network"


def _listed(names: Iterable[str]) -> str:
    every = [f'"{name}"' for name in names]
    more = f" (and {len(every) - _TOLD} more)" if len(every) > _TOLD else ""
    return ", ".join(every[:_TOLD]) + more
