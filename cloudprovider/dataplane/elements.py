"""A forward as elements of sets and maps, and back: the layout that the static rules look up.

What the kernel holds for a listener is kept as it is, also when somebody else has broken it: so it can be compared,
shown as different from anything wanted, and mended element by element. Marks are in the host's byte order, as the
kernel computes with them; addresses and ports in the network's.
"""

import struct
from collections.abc import Iterable, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from cloudprovider.core.plan import Former, Forward, GroupId, IPAddress, IPNetwork, L4Protocol, ListenerKey
from cloudprovider.dataplane import marks, nftables, ruleset_dsr, ruleset_nat
from cloudprovider.dataplane.marks import Step
from cloudprovider.dataplane.nftables import SetName, Transaction
from cloudprovider.dataplane.ruleset import VERSIONS, Version

Place = tuple[SetName, bytes]
"""An element: of which set, and its key."""
Data = bytes | str
"""What a key maps to: a value, or the chain of a goto; b"" in a set, "" for a verdict that is no goto."""
Elements = dict[Place, Data]

BROKEN_FORWARD: Final = Forward(group=GroupId(0), backend_port=0)
"""Stands for a listener whose elements don't fit together: equal to nothing that can be wanted."""

_KEYS: Final[Mapping[Version, struct.Struct]] = {4: struct.Struct("=4sBxxx2sxx"), 6: struct.Struct("=16sBxxx2sxx")}
_MARK: Final = struct.Struct("=I")
_NUMBERS: Final[dict[L4Protocol, int]] = {"TCP": 6, "UDP": 17}
_PROTOCOLS: Final[dict[int, L4Protocol]] = {number: name for name, number in _NUMBERS.items()}


def version_of(address: IPAddress) -> Version:
    """The IP version, as a type."""
    return 4 if isinstance(address, IPv4Address) else 6


def pack_mark(mark: int) -> bytes:
    """A mark as key or value."""
    return _MARK.pack(mark)


def read_mark(data: bytes) -> int:
    """The mark that four bytes of a key or value are."""
    return int(_MARK.unpack(data)[0])


def key_length(version: Version) -> int:
    """Bytes of a listener as a key."""
    return _KEYS[version].size


def listener_key(key: ListenerKey) -> bytes:
    """A listener as the key of a map."""
    return _KEYS[version_of(key.vip)].pack(key.vip.packed, _NUMBERS[key.protocol], key.port.to_bytes(2, "big"))


def listener(version: Version, key: bytes) -> ListenerKey | None:
    """The listener that a key is, or begins with; None where it is of no protocol that is ever looked up."""
    address, number, port = _KEYS[version].unpack_from(key)
    protocol = _PROTOCOLS.get(number)
    if protocol is None:
        return None
    vip = IPv4Address(address) if version == 4 else IPv6Address(address)
    return ListenerKey(vip, protocol, int.from_bytes(port, "big"))


def network(version: Version, length: int, key: bytes) -> IPNetwork | None:
    """The network in the key of a source set; None where it can never match."""
    address = key[key_length(version) :]
    found = ip_network((address, length), strict=False)
    return found if found.network_address.packed == address else None


def is_looked_at(forward: Forward | None) -> bool:
    """Whether frames of a listener have an element in the maps of mode ``dsr``."""
    return forward is not None and (forward.mode == "dsr" or forward.former is not None or forward.pinned)


def of(key: ListenerKey, forward: Forward | None) -> Elements:
    """What the kernel should hold for a listener."""
    found: Elements = {}
    if forward is None:
        return found
    version, packed = version_of(key.vip), listener_key(key)
    restricted = marks.RESTRICTED * bool(forward.sources)
    choice = marks.choice(forward.group, by_client=forward.by_client)
    phase = marks.TRACKED | marks.MOVED if forward.former else marks.TRACKED * forward.pinned
    if forward.mode == "nat":
        found[ruleset_nat.listeners(version), packed] = pack_mark(choice | restricted)
        found[ruleset_nat.ports(version), packed] = forward.backend_port.to_bytes(2, "big")
        if forward.group:
            found[ruleset_nat.connections(version), packed] = b""
        if forward.predecessor is not None:
            for name in (ruleset_nat.predecessors, ruleset_nat.quoted):
                found[name(version), packed] = forward.predecessor.packed
        sources, passed_on = ruleset_nat.sources, phase  # group 0: a flow that begins is the stack's
    else:
        found[ruleset_dsr.connections(version), packed] = b""
        sources, passed_on = ruleset_dsr.sources, choice | phase | restricted
    for source in forward.sources:
        found[sources(version, source.prefixlen), packed + source.network_address.packed] = b""
    if passed_on:
        found[ruleset_dsr.listeners(version), packed] = pack_mark(passed_on)
        found[ruleset_dsr.errors(version), packed] = pack_mark(passed_on & ~marks.RESTRICTED)
    if forward.former is not None:
        former = marks.choice(forward.former.group, by_client=forward.former.by_client)
        found[ruleset_dsr.former(version), packed] = pack_mark(former)
    return found


def forward(key: ListenerKey, held: Elements) -> Forward:
    """What elements of a listener mean, or BROKEN_FORWARD."""
    version, packed = version_of(key.vip), listener_key(key)

    def mark(name: SetName) -> int | None:
        data = held.get((name, packed))
        return read_mark(data) if isinstance(data, bytes) and data else None

    passed_on, translated = mark(ruleset_dsr.listeners(version)), mark(ruleset_nat.listeners(version))
    choice = passed_on if translated is None else translated
    port = held.get((ruleset_nat.ports(version), packed), b"")
    if choice is None or isinstance(port, str):
        return BROKEN_FORWARD
    came = mark(ruleset_dsr.former(version))
    former = None
    if came is not None:
        group = GroupId(came & marks.GROUP)
        former = Former("dsr" if group else "nat", group, bool(came & marks.BY_CLIENT))
    found = Forward(
        group=GroupId(choice & marks.GROUP),
        backend_port=int.from_bytes(port, "big"),
        by_client=bool(choice & marks.BY_CLIENT),
        sources=_sources(version, held) if choice & marks.RESTRICTED else frozenset(),
        mode="dsr" if translated is None else "nat",
        former=former,
        pinned=former is None and passed_on is not None and bool(passed_on & marks.TRACKED),
        predecessor=_address(held.get((ruleset_nat.predecessors(version), packed))),
    )
    usable = found.backend_port > 0 if found.mode == "nat" else found.group > 0
    return found if usable and of(key, found) == held else BROKEN_FORWARD


def _address(data: Data | None) -> IPAddress | None:
    return ip_address(data) if data and isinstance(data, bytes) else None


def _sources(version: Version, held: Elements) -> frozenset[IPNetwork]:
    lengths = _lengths(version)
    found = (network(version, lengths[name], key) for name, key in held if name in lengths)
    return frozenset(source for source in found if source is not None)


@cache
def _lengths(version: Version) -> Mapping[SetName, int]:
    """The prefix length of each source set."""
    both = (ruleset_nat.sources, ruleset_dsr.sources)
    return {
        sources(version, length): length for sources in both for length in range(32 if version == 4 else 128, -1, -1)
    }


def fragment_choice(choices: Iterable[int]) -> int | None:
    """The mark that a VIP's fragments go by, given the groups that its listeners go to (0: mode ``nat``): the one
    group of all, or the stack where there are several; None where none is of mode ``dsr``."""
    groups = set(choices)
    if not any(groups):
        return None
    return marks.choice(groups.pop(), by_client=True) | Step.FRAGMENT if len(groups) == 1 else int(Step.FRAGMENT)


def change(before: Mapping[Place, Data], after: Mapping[Place, Data], transaction: Transaction) -> None:
    """Put into ``transaction`` what turns one into the other."""
    for place, data in before.items():
        if after.get(place) != data:
            transaction.remove(place[0], [nftables.element(place[1])])
    for place, data in after.items():
        if before.get(place) != data:
            transaction.add(place[0], [element(place[1], data)])


def element(key: bytes, data: Data) -> bytes:
    """An element to be added."""
    if isinstance(data, str):
        return nftables.element(key, nftables.goto(data))
    return nftables.element(key, nftables.value(data) if data else b"")


LISTENER_SETS: Final[Mapping[SetName, Version]] = {
    name(version): version
    for version in VERSIONS
    for name in (
        ruleset_nat.listeners,
        ruleset_nat.ports,
        ruleset_nat.connections,
        ruleset_nat.predecessors,
        ruleset_nat.quoted,
        ruleset_dsr.listeners,
        ruleset_dsr.errors,
        ruleset_dsr.former,
        ruleset_dsr.connections,
    )
}
"""The maps and sets whose keys are listeners."""
SOURCE_SETS: Final[Mapping[SetName, tuple[Version, int]]] = {
    name: (version, length) for version in VERSIONS for name, length in _lengths(version).items()
}
"""The sets whose keys are a listener and a network, with the prefix length."""
