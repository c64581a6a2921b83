"""The nftables engine: meets :class:`cloudprovider.dataplane.api.Engine` for one namespace.

It remembers which elements the kernel holds, writes only the difference, and reads them back on request. A change is
one netlink transaction of 0.1 to 0.2 ms, sent from the event loop itself: handing it to a thread would take longer.
"""

import asyncio
import errno
from array import array
from collections.abc import Callable, Collection, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Final, TypeVar

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.maglev import SIZES
from cloudprovider.core.plan import Changes, Group, GroupId, ListenerKey, Member, Plan
from cloudprovider.dataplane import elements, ruleset, ruleset6
from cloudprovider.dataplane.api import Counter
from cloudprovider.dataplane.elements import GroupElements, ListenerElements
from cloudprovider.dataplane.ledger import Ledger
from cloudprovider.dataplane.nftables import NFPROTO_IPV6, Nftables, Transaction, each_element, element
from cloudprovider.dataplane.standing import Standing

K = TypeVar("K")
V = TypeVar("V")

_AGREEING_READS: Final = 6
"""How often to read again what is not as it should be, until two readings agree. The kernel's hash tables resize
in the background after a big change, and a dump meanwhile misses elements and repeats others, without saying so."""

_PAUSE: Final = 0.02
"""Seconds between those readings."""

_DUMPS_BESIDE_CHANGES: Final = 3
"""How often a set is read while others may change it; then it is read in one go, without yielding to the loop."""


class _Held:
    """The elements that the kernel holds."""

    def __init__(self) -> None:
        self.listeners: dict[ListenerKey, ListenerElements] = {}
        self.groups: dict[GroupId, GroupElements] = {}
        self.foreign: dict[str, list[bytes]] = {}
        """Keys that stand for no listener at all (another protocol), by set: to be removed."""

    def listener(self, name: str, key: bytes) -> ListenerElements:
        """What is held for the listener of a key in the set ``name``, to be written to."""
        found = elements.listener(key)
        if found is None:
            self.foreign.setdefault(name, []).append(element(key))
            return ListenerElements()
        return self.listeners.setdefault(found, ListenerElements())

    def group(self, number: int) -> GroupElements:
        """What is held for a group, to be written to."""
        return self.groups.setdefault(GroupId(number), GroupElements())

    def differences(self, other: "_Held") -> tuple[set[ListenerKey], set[GroupId]]:
        """The listeners and groups that are not the same in both."""
        return _unequal(self.listeners, other.listeners), _unequal(self.groups, other.groups)


class NftablesEngine:
    """The rules of one namespace. ``enter`` calls a function inside it."""

    def __init__(self, enter: Callable[[Callable[[], None]], None], nftables: Nftables, standing: Standing) -> None:
        self._enter = enter
        self._nftables = nftables
        self._standing = standing
        self._own = standing.own.ip if standing.own is not None else IPv4Address(0)
        self._ipv6 = standing.ipv6
        self._ledger = Ledger()
        self._held = _Held()
        self._digest = b""
        self._generation = 0
        """What the kernel's generation is when nobody else commits."""
        self._commits = 0
        self._reading = asyncio.Lock()
        self._touched_listeners: set[ListenerKey] = set()
        self._touched_groups: set[GroupId] = set()

    async def start(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`. Rules are replaced in one transaction, elements stay;
        where a predecessor's maps or hooks have another shape, the table is made afresh and waits to be filled."""
        wanted = ruleset.chains(self._own)
        strangers = [name for name in self._nftables.chain_names(ruleset.TABLE) if name not in wanted]
        try:
            await self._load(ruleset.script(self._own, strangers=strangers, afresh=False))
        except DataPlaneError:
            await self._load(ruleset.script(self._own, strangers=[], afresh=True))
        self._digest = self._digest_now()
        await self.observe()

    async def apply(self, changes: Changes) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        self._ledger.check(changes, self._standing)
        transaction = Transaction(ruleset.TABLE)
        groups: dict[GroupId, GroupElements] = {}
        for number, group in changes.groups.items():
            if group is not None and group == self._ledger.groups.get(number):
                continue
            groups[number] = GroupElements.of(number, group)
            self._held.groups.get(number, _NO_GROUP).change(number, groups[number], transaction)
        listeners: dict[ListenerKey, ListenerElements] = {}
        for key, forward in changes.forwards.items():
            listeners[key] = ListenerElements.of(forward)
            held = self._held.listeners.get(key, _NO_LISTENER)
            held.change(elements.listener_key(key), listeners[key], transaction)
        for name, foreign in self._held.foreign.items():
            transaction.remove(name, foreign)
        if transaction:
            self._nftables.commit(transaction)
            self._commits += 1
            self._generation = (self._generation + 1) % (1 << 32)
        self._ledger.commit(changes)
        self._held.foreign = {}
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

    async def observe(self) -> Plan:
        """See :class:`~cloudprovider.dataplane.api.Engine`. What is applied while this reads counts as read."""
        async with self._reading:
            self._touched_listeners, self._touched_groups = set(), set()
            generation, commits = self._nftables.generation(), self._commits
            found = await self._read_surely()
            groups = {number: await self._group(number, held) for number, held in found.groups.items()}
            # From here on without yielding: what is applied from now on finds the new state.
            for key in self._touched_listeners:
                _take(key, self._held.listeners, found.listeners)
            for number in self._touched_groups:
                _take(number, self._held.groups, found.groups)
                _take(number, self._ledger.groups, groups)
            self._held = found
            self._ledger.replace(
                Plan(groups=groups, forwards={key: held.forward() for key, held in found.listeners.items()})
            )
            self._generation = (generation + self._commits - commits) % (1 << 32)
            return self._ledger.plan()

    async def intact(self) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Engine`: one question where nobody changed anything, else four."""
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
        return {}

    async def unpin(self, gone: Mapping[MACAddress, Collection[ListenerKey]]) -> int:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return 0

    async def returned(self) -> Mapping[tuple[ListenerKey, MACAddress], int]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return {}

    async def member_counters(self) -> Mapping[Member, Counter]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return {}

    async def counters(self) -> Mapping[ListenerKey, Counter]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        counters: dict[ListenerKey, Counter] = {}
        async with self._reading:
            for part in await self._slices(ruleset.LISTENERS):
                for item in each_element(part):
                    key = elements.listener(item.key)
                    if key is not None:
                        counters[key] = Counter(*item.counter())
                await asyncio.sleep(0)
        return counters

    async def close(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        self._nftables.close()

    async def _load(self, script: str) -> None:
        whole = script + ruleset6.script() if self._ipv6 else script
        await asyncio.to_thread(self._enter, lambda: ruleset.run(whole))

    def _digest_now(self) -> bytes:
        digest = self._nftables.digest(ruleset.TABLE)
        return digest + self._nftables.digest(ruleset.TABLE, NFPROTO_IPV6) if self._ipv6 else digest

    async def _read_surely(self) -> _Held:
        """All elements. What readings don't agree about counts as touched: the next ``observe`` will tell."""
        found = await self._read()
        unsure = found.differences(self._held)
        for _ in range(_AGREEING_READS):
            if unsure[0] <= self._touched_listeners and unsure[1] <= self._touched_groups:
                break
            await asyncio.sleep(_PAUSE)
            again = await self._read()
            unsure = again.differences(found)
            found = again
        self._touched_listeners |= unsure[0]
        self._touched_groups |= unsure[1]
        return found

    async def _read(self) -> _Held:
        """All elements, with a yield to the event loop after every 32 KiB."""
        found = _Held()
        for name, read in _READERS.items():
            for part in await self._slices(name):
                read(found, part)
                await asyncio.sleep(0)
        return found

    async def _slices(self, name: str) -> list[memoryview]:
        """A set's elements, as they were at one moment but for what was applied meanwhile."""
        for _ in range(_DUMPS_BESIDE_CHANGES):
            parts: list[memoryview] = []
            whole = True
            for part, interrupted in self._nftables.elements(ruleset.TABLE, name):
                parts.append(part)
                whole = whole and not interrupted
                await asyncio.sleep(0)
            if whole:
                return parts
        return [part for part, _ in self._nftables.elements(ruleset.TABLE, name)]

    async def _group(self, number: GroupId, found: GroupElements) -> Group:
        """The group that is held; worked out from its table only if that is not what was written."""
        if found == self._held.groups.get(number) and number in self._ledger.groups:
            return self._ledger.groups[number]
        await asyncio.sleep(0)
        return found.group(number)


_NO_LISTENER: Final = ListenerElements()
_NO_GROUP: Final = GroupElements()


def _unequal(one: Mapping[K, V], other: Mapping[K, V]) -> set[K]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def _take(key: K, source: Mapping[K, V], target: dict[K, V]) -> None:
    """Make ``key`` the same in ``target`` as in ``source``."""
    if key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)


def _read_listeners(found: _Held, part: memoryview) -> None:
    for item in each_element(part):
        found.listener(ruleset.LISTENERS, item.key).mark = elements.read_mark(item.value())


def _read_ports(found: _Held, part: memoryview) -> None:
    for item in each_element(part):
        found.listener(ruleset.PORTS, item.key).port = int.from_bytes(item.value(), "big")


def _read_tables(found: _Held, part: memoryview) -> None:
    for item in each_element(part):
        mark = elements.read_mark(item.key)
        found.group(mark & ~ruleset.BY_CLIENT).targets[mark] = item.target()


def _read_slots(size: int, found: _Held, part: memoryview) -> None:
    tables: dict[int, array[int]] = {}
    for mark, slot, address in elements.read_slots(part):
        try:
            tables[mark][slot] = address
        except LookupError:  # the group's first slot in this part, or one beyond the table
            found.group(mark).put(size, slot, address)
            if slot < size:
                tables[mark] = found.groups[GroupId(mark)].tables[size]


def _read_sources(prefix_length: int, found: _Held, part: memoryview) -> None:
    for item in each_element(part):
        name = ruleset.sources(prefix_length)
        network = IPv4Network((item.key[12:16], prefix_length), strict=False)
        if network.network_address.packed != item.key[12:16]:  # can never match
            found.foreign.setdefault(name, []).append(element(item.key))
            continue
        found.listener(name, item.key).sources |= {network}


_READERS: Final[dict[str, Callable[[_Held, memoryview], None]]] = {
    ruleset.LISTENERS: _read_listeners,
    ruleset.PORTS: _read_ports,
    ruleset.TABLES: _read_tables,
    **{ruleset.slots(size): partial(_read_slots, size) for size in SIZES},
    **{ruleset.sources(length): partial(_read_sources, length) for length in range(33)},
}
