"""What the kernel holds, sorted by what it belongs to: read back set by set."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar

from cloudprovider.core.plan import GroupId, ListenerKey
from cloudprovider.dataplane import elements, marks, ruleset_dsr, shared, tables
from cloudprovider.dataplane.elements import Elements, Place
from cloudprovider.dataplane.nftables import SetName, each_element
from cloudprovider.dataplane.ruleset import VERSIONS, Version
from cloudprovider.dataplane.tables import GroupElements

K = TypeVar("K")
V = TypeVar("V")


class Held:
    """The elements that the kernel holds."""

    def __init__(self) -> None:
        self.listeners: dict[ListenerKey, Elements] = {}
        self.groups: dict[GroupId, GroupElements] = {}
        self.shared: Elements = {}
        """What belongs to several listeners or groups: see :mod:`cloudprovider.dataplane.shared`."""
        self.foreign: set[Place] = set()
        """Those of ``shared`` that nobody can want: to be removed."""

    def group(self, number: int) -> GroupElements:
        """What is held for a group, to be written to."""
        return self.groups.setdefault(GroupId(number), GroupElements())

    def stray(self, place: Place) -> None:
        """Record an element that belongs to nothing."""
        self.shared[place] = b""
        self.foreign.add(place)

    def differences(self, other: "Held") -> tuple[set[ListenerKey], set[GroupId], set[Place]]:
        """The listeners, groups and shared elements that are not the same in both."""
        return (
            _unequal(self.listeners, other.listeners),
            _unequal(self.groups, other.groups),
            _unequal(self.shared, other.shared),
        )


def _unequal(one: Mapping[K, V], other: Mapping[K, V]) -> set[K]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def _read_listeners(name: SetName, version: Version, found: Held, part: memoryview) -> None:
    for item in each_element(part):
        key = elements.listener(version, item.key)
        if key is None:
            found.stray((name, item.key))
        else:
            found.listeners.setdefault(key, {})[name, item.key] = item.value()


def _read_sources(name: SetName, version: Version, length: int, found: Held, part: memoryview) -> None:
    for item in each_element(part):
        key = elements.listener(version, item.key)
        if key is None or elements.network(version, length, item.key) is None:
            found.stray((name, item.key))
        else:
            found.listeners.setdefault(key, {})[name, item.key] = b""


def _read_targets(name: SetName, found: Held, part: memoryview) -> None:
    for item in each_element(part):
        found.group(elements.read_mark(item.key) & marks.GROUP).single[name, item.key] = item.target()


def _read_members(found: Held, part: memoryview) -> None:
    for item in each_element(part):
        found.group(elements.read_mark(item.key[:4])).single[ruleset_dsr.MEMBERS, item.key] = b""


def _read_slots(name: SetName, found: Held, part: memoryview) -> None:
    known: dict[int, list[bytes]] = {}
    values: dict[bytes, bytes] = {}  # one object for all slots of a node
    for mark, slot, data in tables.read_slots(name, part):
        value = values.setdefault(data, data)
        try:
            known[mark][slot] = value
        except LookupError:  # the table's first slot in this part, or one beyond its end
            group = found.group(mark & ~marks.OLD)
            group.put(name, mark, slot, value)
            if (name, mark) in group.tables:
                known[mark] = group.tables[name, mark]


def _read_shared(name: SetName, found: Held, part: memoryview) -> None:
    for item in each_element(part):
        found.shared[name, item.key] = item.value()


def _read_ways(found: Held, part: memoryview) -> None:
    for item in each_element(part):
        found.shared[ruleset_dsr.WAYS, item.key] = item.target()


READERS: Final[Mapping[SetName, Callable[[Held, memoryview], None]]] = {
    **{name: partial(_read_listeners, name, version) for name, version in elements.LISTENER_SETS.items()},
    **{name: partial(_read_sources, name, *where) for name, where in elements.SOURCE_SETS.items()},
    **{name: partial(_read_targets, name) for name in tables.TARGET_SETS},
    ruleset_dsr.MEMBERS: _read_members,
    ruleset_dsr.WAYS: _read_ways,
    **{name: partial(_read_slots, name) for name in tables.SLOT_SETS},
    **{name: partial(_read_shared, name) for name in shared.COUNTING_SETS},
    **{(name := ruleset_dsr.fragments(version)): partial(_read_shared, name) for version in VERSIONS},
}
"""How the elements of each set are read."""
