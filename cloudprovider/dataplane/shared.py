"""Elements that belong to several listeners or groups: which IP versions mode ``dsr`` looks at, where a VIP's
fragments go, and each node's counters.

They follow from the groups and forwards that are held, and change with them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Forward, Group, IPAddress, Member, Plan
from cloudprovider.dataplane import elements, ruleset_dsr, ruleset_nat
from cloudprovider.dataplane.elements import Data, Elements, Place, pack_mark
from cloudprovider.dataplane.ledger import Ledger
from cloudprovider.dataplane.nftables import SetName
from cloudprovider.dataplane.ruleset import VERSIONS, Version

BACKENDS: Final = (ruleset_dsr.BACKENDS, *map(ruleset_nat.backends, VERSIONS))
"""The sets that count what is sent on to each node."""
BEGUN: Final = (ruleset_dsr.BEGUN, *map(ruleset_nat.begun, VERSIONS))
"""The sets that count the flows that begin."""
COUNTING_SETS: Final[tuple[SetName, ...]] = (*BACKENDS, *BEGUN)


def counting(node: Member) -> tuple[Place, Place]:
    """The two elements that count for a node."""
    if isinstance(node, MACAddress):
        return (ruleset_dsr.BACKENDS, node.packed), (ruleset_dsr.BEGUN, node.packed)
    version = elements.version_of(node)
    return (ruleset_nat.backends(version), node.packed), (ruleset_nat.begun(version), node.packed)


def fragments(vip: IPAddress) -> Place:
    """The element that says where a VIP's fragments go."""
    return ruleset_dsr.fragments(elements.version_of(vip)), vip.packed


_ETHER_TYPES: Final[dict[Version, bytes]] = {4: b"\x08\x00", 6: b"\x86\xdd"}


def way(version: Version) -> Place:
    """The element that has mode ``dsr`` look at an IP version's packets."""
    return ruleset_dsr.WAYS, _ETHER_TYPES[version]


@dataclass
class Update:
    """What a delta does to shared elements: ``wanted`` ones (None: not any more), and the counts behind them."""

    ways: Counter[Version] = field(default_factory=Counter)
    choices: dict[IPAddress, Counter[int]] = field(default_factory=dict)
    uses: Counter[Member] = field(default_factory=Counter)
    wanted: dict[Place, Data | None] = field(default_factory=dict)


class Shared:
    """Counts who wants which shared element."""

    def __init__(self, plan: Plan | None = None) -> None:
        self._ways: Counter[Version] = Counter()
        """How many listeners mode ``dsr`` looks at."""
        self._choices: dict[IPAddress, Counter[int]] = {}
        """For each VIP how many listeners go to each group of mode ``dsr``; 0: in mode ``nat``."""
        self._uses: Counter[Member] = Counter()
        """How many groups have a node."""
        if plan is not None:
            self.commit(self.update(Changes(groups=plan.groups, forwards=plan.forwards), Ledger()))

    def update(self, changes: Changes, ledger: Ledger) -> Update:
        """What a delta to what ``ledger`` holds will do."""
        found = Update()
        for number, group in changes.groups.items():
            found.uses.subtract(_nodes(ledger.groups.get(number)))
            found.uses.update(_nodes(group))
        for node, by in found.uses.items():
            for place in counting(node):
                found.wanted[place] = b"" if self._uses[node] + by > 0 else None
        for key, forward in changes.forwards.items():
            choices = found.choices.get(key.vip)
            if choices is None:
                choices = found.choices[key.vip] = Counter(self._choices.get(key.vip, ()))
            choices.subtract(_choice(ledger.forwards.get(key)))
            choices.update(_choice(forward))
            version, before = elements.version_of(key.vip), ledger.forwards.get(key)
            found.ways[version] += elements.is_looked_at(forward) - elements.is_looked_at(before)
        for version, by in found.ways.items():
            found.wanted[way(version)] = ruleset_dsr.way(version) if self._ways[version] + by > 0 else None
        for vip, choices in found.choices.items():
            mark = elements.fragment_choice(group for group, count in choices.items() if count > 0)
            found.wanted[fragments(vip)] = None if mark is None else pack_mark(mark)
        return found

    def commit(self, update: Update) -> None:
        """Take over an update that was carried out."""
        self._ways.update(update.ways)
        for vip, choices in update.choices.items():
            kept = +choices
            if kept:
                self._choices[vip] = kept
            else:
                self._choices.pop(vip, None)
        for node, by in update.uses.items():
            self._uses[node] += by
            if not self._uses[node]:
                del self._uses[node]

    def elements(self) -> Elements:
        """All that are wanted."""
        found: Elements = {place: b"" for node in self._uses for place in counting(node)}
        found |= {way(version): ruleset_dsr.way(version) for version, count in self._ways.items() if count}
        for vip, choices in self._choices.items():
            mark = elements.fragment_choice(choices)
            if mark is not None:
                found[fragments(vip)] = pack_mark(mark)
        return found


def _nodes(group: Group | None) -> frozenset[Member]:
    return group.members | group.former if group is not None else frozenset()


def _choice(forward: Forward | None) -> Iterator[int]:
    """How a forward votes about its VIP's fragments; one that refuses has no part in it."""
    if forward is not None and forward.group:
        yield forward.group if forward.mode == "dsr" else 0
