"""A group as elements, and back: its Maglev tables, and at which step its frames go to which chain.

Read and written ten thousand at a time, so what is in a slot stays the bytes that it is to the kernel.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.maglev import SIZES, lookup_table, table_size
from cloudprovider.core.plan import Group, GroupId, Member
from cloudprovider.dataplane import elements, marks, netlink, ruleset_dsr, ruleset_nat
from cloudprovider.dataplane.elements import Elements, pack_mark
from cloudprovider.dataplane.marks import Step
from cloudprovider.dataplane.nftables import (
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFPROTO_NETDEV,
    SetName,
    Transaction,
    each_element,
    element,
)
from cloudprovider.dataplane.ruleset import VERSIONS
from cloudprovider.dataplane.ruleset_dsr import Choice

BROKEN_GROUP: Final = Group(frozenset())
"""Stands for a group whose elements are not what any group has."""

TableKey = tuple[SetName, int]
"""A table: of which map of slots, and the mark that its keys begin with."""

SLOT_SETS: Final[Mapping[SetName, int]] = {
    **{ruleset_nat.slots(version, size): size for version in VERSIONS for size in SIZES},
    **{ruleset_dsr.slots(size): size for size in SIZES},
}
"""The maps of slots, with their size."""
TARGET_SETS: Final = tuple(
    targets(version)
    for version in VERSIONS
    for targets in (ruleset_nat.tables, ruleset_dsr.tables, ruleset_dsr.steps, ruleset_dsr.full)
)
"""The maps of mark to chain."""

_SLOT: Final = struct.Struct("=II")
_SLOT_KEY: Final = struct.Struct("=12sII")


class _Shape:
    """What all elements of a map of slots have in common, whose values are ``width`` bytes: one struct builds and
    reads them."""

    def __init__(self, width: int) -> None:
        pad = -width % 4
        self.struct = struct.Struct(f"=12sII8s{width}s{pad}x")
        self.built = self._around(width, netlink.NLA_F_NESTED)
        self.read = self._around(width, 0)  # the kernel leaves the flag out

    @staticmethod
    def _around(width: int, flag: int) -> tuple[bytes, bytes]:
        """The bytes before key and before value."""
        parts = netlink.attribute(1, bytes(8)), netlink.attribute(1, bytes(width))
        body = netlink.attribute(1 | flag, parts[0]) + netlink.attribute(2 | flag, parts[1])
        whole = netlink.attribute(1 | flag, body)
        return whole[:12], whole[20:28]


_WIDTHS: Final = {NFPROTO_IPV4: 4, NFPROTO_IPV6: 16, NFPROTO_NETDEV: 6}
_SHAPES: Final = {width: _Shape(width) for width in (4, 6, 16)}
_KEY_PREFIX: Final = element(bytes(8))[:12]


def member(data: bytes) -> Member:
    """The node that a slot's value, or a key, is."""
    if len(data) == 6:
        return MACAddress.unpack(data)
    return IPv4Address(data) if len(data) == 4 else IPv6Address(data)


@dataclass(slots=True)
class GroupElements:
    """What the kernel holds for one group: single elements, its tables (b"" is a missing slot), and strays: slots
    beyond the end of a table."""

    single: Elements = field(default_factory=dict)
    tables: dict[TableKey, list[bytes]] = field(default_factory=dict)
    strays: dict[TableKey, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, number: GroupId, wanted: Group | None) -> "GroupElements":
        """What it should hold: takes about 5 ms (60 ms for more than 100 nodes)."""
        if wanted is None:
            return cls()
        some = next(iter(wanted.members))
        if isinstance(some, MACAddress):
            tables = {(ruleset_dsr.slots(table_size(len(wanted.members))), int(number)): _table(wanted.members)}
            if wanted.former:
                size = table_size(len(wanted.former))
                tables[ruleset_dsr.slots(size), number | marks.OLD] = _table(wanted.former)
            own: Elements = {
                (ruleset_dsr.MEMBERS, pack_mark(number) + node.packed + bytes(2)): b"" for node in wanted.members
            }
            return cls(single=_dsr_targets(number, wanted) | own, tables=tables)
        version = elements.version_of(some)
        size = table_size(len(wanted.members))
        return cls(
            single={
                (ruleset_nat.tables(version), pack_mark(marks.choice(number, by_client=by_client))): ruleset_nat.chain(
                    size, by_client=by_client
                )
                for by_client in (False, True)
            },
            tables={(ruleset_nat.slots(version, size), int(number)): _table(wanted.members)},
        )

    def group(self, number: GroupId) -> Group:
        """The group that this is, or BROKEN_GROUP. As slow as :meth:`of`."""
        now = [set(table) for (_, mark), table in self.tables.items() if mark == number]
        before = [set(table) for (_, mark), table in self.tables.items() if mark != number]
        if len(now) != 1 or len(before) > 1 or any(b"" in nodes for nodes in now + before):
            return BROKEN_GROUP
        if not 1 <= number <= marks.GROUP or len({len(data) for nodes in now + before for data in nodes}) != 1:
            return BROKEN_GROUP
        members, former = (frozenset(member(data) for nodes in side for data in nodes) for side in (now, before))
        plain = self.single.get((ruleset_dsr.tables(4), pack_mark(number)))
        found = Group(members, former, pinned=not former and plain == ruleset_dsr.tracked(4))
        return found if GroupElements.of(number, found) == self else BROKEN_GROUP

    def put(self, name: SetName, mark: int, slot: int, value: bytes) -> None:
        """Record that the kernel has this slot."""
        key = (name, mark)
        if slot >= SLOT_SETS[name]:
            self.strays.setdefault(key, set()).add(slot)
            return
        table = self.tables.get(key)
        if table is None:
            table = self.tables[key] = [b""] * SLOT_SETS[name]
        table[slot] = value

    def change(self, new: "GroupElements", transaction: Transaction) -> None:
        """Put into ``transaction`` what turns this into ``new``: the slots that move, and no others."""
        elements.change(self.single, new.single, transaction)
        for key in self.tables.keys() | self.strays.keys() | new.tables.keys():
            name, mark = key
            have, want = self.tables.get(key, []), new.tables.get(key, [])
            removed = list(self.strays.get(key, ()))
            if have and want:
                added = [slot for slot, (a, b) in enumerate(zip(have, want, strict=True)) if a != b]
                removed += [slot for slot in added if have[slot]]
            else:
                removed += [slot for slot, value in enumerate(have) if value]
                added = list(range(len(want)))
            if removed:
                transaction.remove(name, [_SLOT_KEY.pack(_KEY_PREFIX, mark, slot) for slot in removed])
            if added:
                shape = _SHAPES[len(want[0])]
                (prefix, middle), pack = shape.built, shape.struct.pack
                transaction.add(name, [pack(prefix, mark, slot, middle, want[slot]) for slot in added])


def _table(members: frozenset[Member]) -> list[bytes]:
    return list(_slots(members))


@lru_cache(maxsize=8)  # what a group comes from is what it just was
def _slots(members: frozenset[Member]) -> tuple[bytes, ...]:
    ordered = sorted(members, key=lambda node: node.packed)
    packed = [node.packed for node in ordered]
    return tuple(packed[index] for index in lookup_table(ordered, table_size(len(ordered))))


def _dsr_targets(number: GroupId, group: Group) -> Elements:
    """Which chain a frame goes to, and which at each step while the group or its listener changes."""
    now, before = table_size(len(group.members)), table_size(max(1, len(group.former)))
    what: Choice
    join: tuple[Choice, int] = ("pin", now)
    if group.former:
        leave: tuple[Choice, int] = ("old", before)
        steps = {
            Step.BEGIN: join,
            Step.GOING: leave,
            Step.LEAVE: leave,
            Step.DATAGRAM: leave if group.former <= group.members else join,
        }
    else:
        plain: tuple[Choice, int] = ("by", now)
        steps = {Step.BEGIN: plain, Step.GOING: plain, Step.LEAVE: join, Step.DATAGRAM: plain}
    steps |= {Step.JOIN: join, Step.ERROR: ("error", now), Step.FRAGMENT: ("by", now)}
    found: Elements = {}
    for version in VERSIONS:
        for by_client in (False, True):
            mark = marks.choice(number, by_client=by_client)
            found[ruleset_dsr.tables(version), pack_mark(mark)] = (
                ruleset_dsr.tracked(version)
                if group.former or group.pinned
                else ruleset_dsr.chain("by", version, now, by_client=by_client)
            )
            what, size = ("last", before) if group.former else ("by", now)
            found[ruleset_dsr.full(version), pack_mark(mark)] = ruleset_dsr.chain(
                what, version, size, by_client=by_client
            )
            for step, (what, size) in steps.items():
                target = ruleset_dsr.chain(what, version, size, by_client=by_client)
                found[ruleset_dsr.steps(version), pack_mark(mark | step)] = target
    return found


def read_slots(name: SetName, data: memoryview) -> Iterator[tuple[int, int, bytes]]:
    """Yield (mark, slot, value) of a dump's elements."""
    shape = _SHAPES[_WIDTHS[name.family]]
    prefix, middle = shape.read
    if len(data) % shape.struct.size == 0:
        rows = list(shape.struct.iter_unpack(data))
        if all(row[0] == prefix and row[3] == middle for row in rows):
            for _, mark, slot, _, value in rows:
                yield mark, slot, value
            return
    for found in each_element(data):  # somebody gave an element a comment or a time-out
        mark, slot = _SLOT.unpack(found.key)
        yield mark, slot, found.value()
