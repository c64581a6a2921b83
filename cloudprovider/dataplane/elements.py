"""Forwards and groups as set elements, and back: the layout of :mod:`cloudprovider.dataplane.ruleset`'s maps.

What the kernel holds for a listener or a group is kept as it is (:class:`ListenerElements`, :class:`GroupElements`),
also when somebody else has broken it: so it can be compared, shown as different from anything wanted, and mended
element by element. Marks and slots are in the host's byte order, as the kernel computes with them; addresses and
ports in the network's.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from cloudprovider.core.maglev import SIZES, lookup_table, table_size
from cloudprovider.core.plan import Forward, Group, GroupId, L4Protocol, ListenerKey, Member
from cloudprovider.dataplane import netlink, ruleset
from cloudprovider.dataplane.nftables import Transaction, each_element, element, goto, value

BROKEN_FORWARD: Final = Forward(group=GroupId(0), backend_port=0)
"""Stands for a listener whose elements don't fit together: equal to nothing that can be wanted."""
BROKEN_GROUP: Final = Group(frozenset())
"""Stands for a group whose elements are not the Maglev table of any nodes."""

_KEY: Final = struct.Struct("=4sBxxx2sxx")
_SLOT: Final = struct.Struct("=II")
_MARK: Final = struct.Struct("=I")
_NUMBERS: Final[dict[L4Protocol, int]] = {"TCP": 6, "UDP": 17}
_PROTOCOLS: Final[dict[int, L4Protocol]] = {number: name for name, number in _NUMBERS.items()}

# An element of a slots map has one shape only, which is built and read ten thousand at a time.
_SLOT_ELEMENT: Final = struct.Struct("=12sII8sI")
_SLOT_KEY: Final = struct.Struct("=12sII")


def _shape(*, flag: int) -> tuple[bytes, bytes]:
    """The bytes before key and value of a slot's element, with or without the flag that says "nested"."""
    part = netlink.attribute(1, bytes(8)), netlink.attribute(1, bytes(4))
    body = netlink.attribute(1 | flag, part[0]) + netlink.attribute(2 | flag, part[1])
    whole = netlink.attribute(1 | flag, body)
    return whole[:12], whole[20:28]


_BUILT: Final = _shape(flag=netlink.NLA_F_NESTED)
_READ: Final = _shape(flag=0)  # the kernel leaves the flag out
_KEY_PREFIX: Final = element(bytes(8))[:12]


def listener_key(key: ListenerKey) -> bytes:
    """A listener as the key of a map."""
    return _KEY.pack(key.vip.packed, _NUMBERS[key.protocol], key.port.to_bytes(2, "big"))


def listener(key: bytes) -> ListenerKey | None:
    """The listener of a key; None where it is of no protocol that is ever looked up."""
    address, number, port = _KEY.unpack_from(key)
    protocol = _PROTOCOLS.get(number)
    return None if protocol is None else ListenerKey(IPv4Address(address), protocol, int.from_bytes(port, "big"))


@dataclass(slots=True)
class ListenerElements:
    """What the kernel holds for one listener; None: no such element."""

    mark: int | None = None
    port: int | None = None
    sources: frozenset[IPv4Network] = frozenset()

    @classmethod
    def of(cls, forward: Forward | None) -> "ListenerElements":
        """What it should hold."""
        if forward is None:
            return cls()
        mark = forward.group | ruleset.BY_CLIENT * forward.by_client | ruleset.RESTRICTED * bool(forward.sources)
        sources = frozenset(s for s in forward.sources if isinstance(s, IPv4Network))
        return cls(mark=mark, port=forward.backend_port, sources=sources)

    def forward(self) -> Forward:
        """What it means, or BROKEN_FORWARD."""
        if self.mark is None or not self.port:
            return BROKEN_FORWARD
        found = Forward(
            group=GroupId(self.mark & ruleset.GROUP),
            backend_port=self.port,
            by_client=bool(self.mark & ruleset.BY_CLIENT),
            sources=self.sources,
        )
        return found if ListenerElements.of(found).mark == self.mark else BROKEN_FORWARD

    def change(self, key: bytes, new: "ListenerElements", transaction: Transaction) -> None:
        """Put into ``transaction`` what turns this into ``new``."""
        if self.mark != new.mark:
            if self.mark is not None:
                transaction.remove(ruleset.LISTENERS, [element(key)])
            if new.mark is not None:
                transaction.add(ruleset.LISTENERS, [element(key, value(_MARK.pack(new.mark)))])
        if self.port != new.port:
            if self.port is not None:
                transaction.remove(ruleset.PORTS, [element(key)])
            if new.port is not None:
                transaction.add(ruleset.PORTS, [element(key, value(new.port.to_bytes(2, "big")))])
        for source in self.sources - new.sources:
            transaction.remove(ruleset.sources(source.prefixlen), [element(key + source.network_address.packed)])
        for source in new.sources - self.sources:
            transaction.add(ruleset.sources(source.prefixlen), [element(key + source.network_address.packed)])


@dataclass(slots=True)
class GroupElements:
    """What the kernel holds for one group: the chain that each of its two marks goes to, its tables, and strays.

    A table is an array of node addresses, as the numbers that their four bytes are to this machine; 0 is a missing
    slot. Strays are slots beyond the end of the table of that size.
    """

    targets: dict[int, str] = field(default_factory=dict)
    tables: "dict[int, array[int]]" = field(default_factory=dict)
    strays: dict[int, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, group: GroupId, wanted: Group | None) -> "GroupElements":
        """What it should hold: takes about 5 ms (60 ms for more than 100 nodes)."""
        if wanted is None:
            return cls()
        ordered = sorted(wanted.members, key=lambda member: member.packed)
        size = table_size(len(ordered))
        numbers = [_MARK.unpack(node.packed)[0] for node in ordered]
        table = array("I", [numbers[index] for index in lookup_table(ordered, size)])
        return cls(
            targets={
                group: ruleset.chain(size, by_client=False),
                group | ruleset.BY_CLIENT: ruleset.chain(size, by_client=True),
            },
            tables={size: table},
        )

    def group(self, group: GroupId) -> Group:
        """The group that this is, or BROKEN_GROUP. As slow as :meth:`of`."""
        if len(self.tables) != 1:
            return BROKEN_GROUP
        (table,) = self.tables.values()
        numbers = set(table)
        if 0 in numbers or not 1 <= group <= ruleset.GROUP:
            return BROKEN_GROUP
        nodes: frozenset[Member] = frozenset(IPv4Address(_MARK.pack(number)) for number in numbers)
        return Group(nodes) if GroupElements.of(group, Group(nodes)) == self else BROKEN_GROUP

    def put(self, size: int, slot: int, address: int) -> None:
        """Record that the kernel has this slot."""
        if slot >= size:
            self.strays.setdefault(size, set()).add(slot)
            return
        table = self.tables.get(size)
        if table is None:
            table = self.tables[size] = array("I", bytes(4 * size))
        table[slot] = address

    def change(self, group: GroupId, new: "GroupElements", transaction: Transaction) -> None:
        """Put into ``transaction`` what turns this into ``new``: the slots that move, and no others."""
        for mark in self.targets.keys() | new.targets.keys():
            before, after = self.targets.get(mark), new.targets.get(mark)
            if before == after:
                continue
            if before is not None:
                transaction.remove(ruleset.TABLES, [element(_MARK.pack(mark))])
            if after is not None:
                transaction.add(ruleset.TABLES, [element(_MARK.pack(mark), goto(after))])
        for size in SIZES:
            have, want = self.tables.get(size), new.tables.get(size)
            removed = list(self.strays.get(size, ()))
            if have is not None and want is not None:
                moved = [slot for slot, (a, b) in enumerate(zip(have, want, strict=True)) if a != b]
                removed += [slot for slot in moved if have[slot]]
                added = moved
            else:
                removed += [slot for slot, address in enumerate(have or ()) if address]
                added = list(range(size)) if want is not None else []
            if removed:
                transaction.remove(ruleset.slots(size), [_SLOT_KEY.pack(_KEY_PREFIX, group, s) for s in removed])
            if want is not None and added:
                prefix, middle = _BUILT
                pack = _SLOT_ELEMENT.pack
                transaction.add(ruleset.slots(size), [pack(prefix, group, s, middle, want[s]) for s in added])


def read_slots(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield (mark, slot, address as a number) of a dump's elements."""
    prefix, middle = _READ
    if len(data) % _SLOT_ELEMENT.size == 0:
        rows = list(_SLOT_ELEMENT.iter_unpack(data))
        if all(row[0] == prefix and row[3] == middle for row in rows):
            for _, mark, slot, _, address in rows:
                yield mark, slot, address
            return
    for found in each_element(data):  # somebody gave an element a comment or a time-out
        mark, slot = _SLOT.unpack(found.key)
        yield mark, slot, _MARK.unpack(found.value())[0]


def read_mark(data: bytes) -> int:
    """The mark that four bytes of a key or value are."""
    return int(_MARK.unpack(data)[0])
