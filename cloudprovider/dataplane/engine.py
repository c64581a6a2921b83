"""The nftables engine: meets :class:`cloudprovider.dataplane.api.Engine` for one namespace.

It remembers which elements the kernel holds, writes only the difference, and reads them back on request. A change is
one netlink transaction of 0.1 to 0.2 ms, sent from the event loop itself: handing it to a thread would take longer.
"""

import asyncio
import contextlib
import errno
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, ListenerKey, Member, Plan
from cloudprovider.dataplane import elements, ruleset, ruleset_dsr, ruleset_nat, shared, tables
from cloudprovider.dataplane.api import Counter
from cloudprovider.dataplane.elements import BROKEN_FORWARD, Elements, Place
from cloudprovider.dataplane.held import READERS, Held
from cloudprovider.dataplane.ledger import Ledger
from cloudprovider.dataplane.nftables import Element, Nftables, SetName, Transaction, each_element, element
from cloudprovider.dataplane.pins import PIN_SETS, Listeners
from cloudprovider.dataplane.resets import Flow
from cloudprovider.dataplane.ruleset import TABLE, VERSIONS, StaticTable
from cloudprovider.dataplane.shared import Shared
from cloudprovider.dataplane.standing import Standing
from cloudprovider.dataplane.tables import BROKEN_GROUP, GroupElements

K = TypeVar("K")
V = TypeVar("V")

_AGREEING_READS: Final = 6
"""How often to read again what is not as it should be, until two readings agree. The kernel's hash tables resize
in the background after a big change, and a dump meanwhile misses elements and repeats others, without saying so."""

_PAUSE: Final = 0.02
"""Seconds between those readings."""

_DUMPS_BESIDE_CHANGES: Final = 3
"""How often a set is read while others may change it; then it is read in one go, without yielding to the loop."""

_UNPINNED_AT_ONCE: Final = 500


class NftablesEngine:
    """The rules of one namespace. ``enter`` calls a function inside it."""

    def __init__(self, enter: Callable[[Callable[[], None]], None], nftables: Nftables, standing: Standing) -> None:
        self._enter = enter
        self._nftables = nftables
        self._standing = standing
        self._static: Sequence[StaticTable] = (
            *([ruleset_dsr.table(standing)] if standing.dsr else ()),
            *(ruleset_nat.table(version, standing) for version in VERSIONS if version == 4 or standing.ipv6),
        )
        self._families = {table.family for table in self._static}
        self._readers = {name: read for name, read in READERS.items() if name.family in self._families}
        self._ledger = Ledger()
        self._held = Held()
        self._shared = Shared()
        self._digest = b""
        self._generation = 0
        """What the kernel's generation is when nobody else commits."""
        self._commits = 0
        self._reading = asyncio.Lock()
        self._touched_listeners: set[ListenerKey] = set()
        self._touched_groups: set[GroupId] = set()
        self._touched_places: set[Place] = set()

    async def start(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`. Rules are replaced in one transaction, elements stay;
        where a predecessor's maps or hooks have another shape, the tables are made afresh and wait to be filled."""
        try:
            await self._load(afresh=False)
            await self._remove_strangers()
        except DataPlaneError:
            await self._load(afresh=True)
        self._digest = self._digest_now()
        await self.observe()
        await self._forget_pins(lambda key, _: key is None)

    async def apply(self, changes: Changes) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        self._ledger.check(changes, self._standing)
        transaction = Transaction(TABLE)
        groups: dict[GroupId, GroupElements] = {}
        for number, group in changes.groups.items():
            if group is not None and group == self._ledger.groups.get(number):
                continue
            groups[number] = GroupElements.of(number, group)
            self._held.groups.get(number, _NO_GROUP).change(groups[number], transaction)
        listeners: dict[ListenerKey, Elements] = {}
        for key, forward in changes.forwards.items():
            listeners[key] = elements.of(key, forward)
            elements.change(self._held.listeners.get(key, {}), listeners[key], transaction)
        update = self._shared.update(changes, self._ledger)
        touched = update.wanted.keys() | self._held.foreign
        after = {place: data for place, data in update.wanted.items() if data is not None}
        elements.change(_part(self._held.shared, touched), after, transaction)
        if transaction:
            self._commit(transaction)
        ended = self._ledger.ends(changes)
        self._ledger.commit(changes)
        self._shared.commit(update)
        self._held.foreign = set()
        for place in touched:
            _take(place, after, self._held.shared)
        self._held.groups.update(groups)
        self._held.listeners.update(listeners)
        for number, group in changes.groups.items():
            if group is None:
                self._held.groups.pop(number, None)
        for key, forward in changes.forwards.items():
            if forward is None:
                del self._held.listeners[key]
        self._touched_groups.update(groups)
        self._touched_listeners.update(listeners)
        self._touched_places.update(touched)
        if ended:
            await self._forget_pins(lambda key, _: key is None)

    async def observe(self) -> Plan:
        """See :class:`~cloudprovider.dataplane.api.Engine`. What is applied while this reads counts as read."""
        async with self._reading:
            self._touched_listeners, self._touched_groups, self._touched_places = set(), set(), set()
            generation, commits = self._nftables.generation(), self._commits
            found = await self._read_surely()
            groups = {number: await self._group(number, held) for number, held in found.groups.items()}
            # From here on without yielding: what is applied from now on finds the new state.
            for key in self._touched_listeners:
                _take(key, self._held.listeners, found.listeners)
            for number in self._touched_groups:
                _take(number, self._held.groups, found.groups)
                _take(number, self._ledger.groups, groups)
            for place in self._touched_places:
                _take(place, self._held.shared, found.shared)
            forwards = {key: self._forward(key, held) for key, held in found.listeners.items()}
            self._held = found
            self._adopt(Plan(groups=groups, forwards=forwards))
            self._generation = (generation + self._commits - commits) % (1 << 32)
            return self._ledger.plan()

    async def intact(self) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Engine`: one question where nobody changed anything, else many."""
        if await self.undisturbed():
            return True
        try:
            return self._digest_now() == self._digest
        except DataPlaneError as error:
            if error.errno == errno.ENOENT:
                return False
            raise

    async def undisturbed(self) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return self._nftables.generation() == self._generation

    async def pins(self) -> Mapping[tuple[ListenerKey, MACAddress], int]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        found: Tally[tuple[ListenerKey, MACAddress]] = Tally()
        async with self._reading:
            listeners = Listeners(self._ledger.all_tracked())
            for name in PIN_SETS:
                for part in await self._slices(name):
                    found.update((key, mac) for _, key, mac in listeners.read(name, part) if key is not None)
                    await asyncio.sleep(0)
        return found

    async def unpin(self, gone: Mapping[MACAddress, Collection[ListenerKey]]) -> int:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        if not any(gone.values()):
            return 0
        return await self._forget_pins(lambda key, mac: key is not None and key in gone.get(mac, ()))

    async def returned(self) -> Mapping[tuple[ListenerKey, MACAddress], int]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        found: dict[tuple[ListenerKey, MACAddress], int] = {}
        for version in VERSIONS:
            async for item in self._items(ruleset_dsr.returned(version)):
                key = elements.listener(version, item.key[8:])
                if key is not None:
                    found[key, MACAddress.unpack(item.key[:6])] = item.counter()[0]
        return found

    async def returned_syns(self) -> Mapping[Flow, int]:
        """The TCP flows whose SYN a node has sent back within two seconds, and how often. Raises DataPlaneError."""
        found: dict[Flow, int] = {}
        for version in VERSIONS:
            async for item in self._items(ruleset_dsr.returned_syns(version)):
                found[Flow.unpack(version, item.key)] = item.counter()[0]
        return found

    async def counters(self) -> Mapping[ListenerKey, Counter]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        found: dict[ListenerKey, Counter] = {}
        for version in VERSIONS:
            for name, begins in (
                (ruleset_nat.listeners(version), False),
                (ruleset_dsr.listeners(version), False),
                (ruleset_nat.connections(version), True),
                (ruleset_dsr.connections(version), True),
            ):
                async for item in self._items(name):
                    key = elements.listener(version, item.key)
                    if key is not None:
                        before = found.get(key, _NOTHING)
                        packets, size = item.counter()
                        found[key] = (
                            replace(before, connections=before.connections + packets)
                            if begins
                            else replace(before, packets=before.packets + packets, bytes=before.bytes + size)
                        )
        return found

    async def member_counters(self) -> Mapping[Member, Counter]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        begun: dict[Member, int] = {}
        for name in shared.BEGUN:
            async for item in self._items(name):
                begun[tables.member(item.key)] = item.counter()[0]
        found: dict[Member, Counter] = {}
        for name in shared.BACKENDS:
            async for item in self._items(name):
                node = tables.member(item.key)
                found[node] = Counter(*item.counter(), connections=begun.get(node, 0))
        return found

    async def close(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        self._nftables.close()

    # Static rules.

    async def _load(self, *, afresh: bool) -> None:
        lines: list[str] = []
        for table in self._static:
            lines += table.script(afresh=afresh)
        await self._run(lines)

    async def _remove_strangers(self) -> None:
        """Remove the chains of a predecessor that are none of ours. Of a newer one elements may lead to some: these
        serve until the elements are ours, and go at the next start."""
        for table in self._static:
            there = self._nftables.chain_names(TABLE, table.family)
            strangers = [name for name in there if name not in table.chains]
            try:
                await self._run(table.without(strangers))
            except DataPlaneError:
                for name in strangers:
                    with contextlib.suppress(DataPlaneError):
                        await self._run(table.without([name]))

    async def _run(self, lines: Sequence[str]) -> None:
        if lines:
            await asyncio.to_thread(self._enter, lambda: ruleset.run("\n".join(lines) + "\n"))

    def _digest_now(self) -> bytes:
        return b"".join(self._nftables.digest(TABLE, table.family) for table in self._static)

    # Writing.

    def _commit(self, transaction: Transaction) -> None:
        self._nftables.commit(transaction)
        self._commits += 1
        self._generation = (self._generation + 1) % (1 << 32)

    async def _forget_pins(self, doomed: Callable[[ListenerKey | None, MACAddress], bool]) -> int:
        """Remove pins, told by listener (None: one that has none any more) and node; return how many."""
        gone = 0
        async with self._reading:
            for name in PIN_SETS:
                for part in await self._slices(name):
                    listeners = Listeners(self._ledger.all_tracked())
                    keys = [key for key, listener, mac in listeners.read(name, part) if doomed(listener, mac)]
                    for start in range(0, len(keys), _UNPINNED_AT_ONCE):
                        gone += self._remove_pins(name, keys[start : start + _UNPINNED_AT_ONCE])
                    await asyncio.sleep(0)
        return gone

    def _remove_pins(self, name: SetName, keys: Sequence[bytes]) -> int:
        """Remove what is there of these; the kernel may have forgotten some meanwhile, and refuses them all then."""
        if not keys:
            return 0
        transaction = Transaction(TABLE)
        transaction.remove(name, map(element, keys))
        try:
            self._commit(transaction)
        except DataPlaneError as error:
            if error.errno != errno.ENOENT:
                raise
            half = len(keys) // 2
            return self._remove_pins(name, keys[:half]) + self._remove_pins(name, keys[half:]) if half else 0
        return len(keys)

    # Reading.

    def _adopt(self, plan: Plan) -> None:
        """Hold what was found. Where a shared element is not what follows from it, a listener or group is broken."""
        wanted = Shared(plan).elements()
        missing = {place for place, data in wanted.items() if self._held.shared.get(place) != data}
        if missing:
            broken = {
                number
                for number, group in plan.groups.items()
                if any(place in missing for node in group.members | group.former for place in shared.counting(node))
            }
            cut = {
                key
                for key, forward in plan.forwards.items()
                if shared.fragments(key.vip) in missing
                or (shared.way(elements.version_of(key.vip)) in missing and elements.is_looked_at(forward))
            }
            plan = Plan(
                groups={**plan.groups, **dict.fromkeys(broken, BROKEN_GROUP)},
                forwards={**plan.forwards, **dict.fromkeys(cut, BROKEN_FORWARD)},
            )
        self._shared = Shared(plan)
        self._held.foreign |= self._held.shared.keys() - self._shared.elements().keys()
        self._ledger.replace(plan)

    async def _read_surely(self) -> Held:
        """All elements. What readings don't agree about counts as touched: the next ``observe`` will tell."""
        found = await self._read()
        unsure = found.differences(self._held)
        for _ in range(_AGREEING_READS):
            listeners, groups, places = unsure
            if (
                listeners <= self._touched_listeners
                and groups <= self._touched_groups
                and places <= self._touched_places
            ):
                break
            await asyncio.sleep(_PAUSE)
            again = await self._read()
            unsure = again.differences(found)
            found = again
        self._touched_listeners |= unsure[0]
        self._touched_groups |= unsure[1]
        self._touched_places |= unsure[2]
        return found

    async def _read(self) -> Held:
        """All elements, with a yield to the event loop after every 32 KiB."""
        found = Held()
        for name, read in self._readers.items():
            for part in await self._slices(name):
                read(found, part)
                await asyncio.sleep(0)
        return found

    async def _items(self, name: SetName) -> AsyncIterator[Element]:
        """The elements of a set."""
        async with self._reading:
            parts = await self._slices(name)
        for part in parts:
            for item in each_element(part):
                yield item
            await asyncio.sleep(0)

    async def _slices(self, name: SetName) -> list[memoryview]:
        """A set's elements, as they were at one moment but for what was applied meanwhile; none where the namespace
        has no such table."""
        if name.family not in self._families:
            return []
        for _ in range(_DUMPS_BESIDE_CHANGES):
            parts: list[memoryview] = []
            whole = True
            for part, interrupted in self._nftables.elements(TABLE, name):
                parts.append(part)
                whole = whole and not interrupted
                await asyncio.sleep(0)
            if whole:
                return parts
        return [part for part, _ in self._nftables.elements(TABLE, name)]

    async def _group(self, number: GroupId, found: GroupElements) -> Group:
        """The group that is held; worked out from its table only if that is not what was written."""
        if found == self._held.groups.get(number) and number in self._ledger.groups:
            return self._ledger.groups[number]
        await asyncio.sleep(0)
        return found.group(number)

    def _forward(self, key: ListenerKey, found: Elements) -> Forward:
        """The forward that is held; worked out from its elements only if they are not what was written."""
        if key in self._ledger.forwards and found == self._held.listeners.get(key):
            return self._ledger.forwards[key]
        return elements.forward(key, found)


_NO_GROUP: Final = GroupElements()
_NOTHING: Final = Counter(packets=0, bytes=0)


def _part(held: Elements, places: Iterable[Place]) -> Elements:
    return {place: held[place] for place in places if place in held}


def _take(key: K, source: Mapping[K, V], target: dict[K, V]) -> None:
    """Make ``key`` the same in ``target`` as in ``source``."""
    if key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)
