"""Changes of a plan that cut no connection: what goes on as before, for how long, and who has to be cut in the end.

:class:`Transitions` stands between what is wanted and what the kernel is told. In mode ``dsr`` the kernel remembers no
flow, so whatever changes the choice of a node leaves flows with a node that knows nothing of them. Therefore a change
goes in three steps (:class:`~cloudprovider.core.plan.Group` says what the kernel does in each):

1. *moving*, for MOVING_SECONDS: what begins is chosen anew, what is under way as before, and both are pinned;
2. *pinned*: what was pinned stays, as long as it lives; nothing new is pinned;
3. as wanted, once no pin is left.

What can't be kept: a flow that sends nothing for as long as step 1 takes, and flows that come when the kernel's table
of pins is full; they take the new choice.

A node that leaves a listener keeps its established TCP connections for the listener's drain time, and is *due* then:
they are cut. Its UDP flows are due at once. Time is an argument, in seconds of a monotonic clock.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from cloudprovider.core.deadlines import Deadlines
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, IPAddress, ListenerKey, Member, Plan

MOVING_SECONDS = 300.0
REFUSE = GroupId(0)


@dataclass
class Due:
    """Flows to end now: of a node's listeners, by conntrack (addresses) and by pins (MACs)."""

    udp: dict[IPAddress, set[ListenerKey]] = field(default_factory=lambda: defaultdict(set))
    tcp: dict[IPAddress, set[ListenerKey]] = field(default_factory=lambda: defaultdict(set))
    pins: dict[MACAddress, set[ListenerKey]] = field(default_factory=lambda: defaultdict(set))

    def __bool__(self) -> bool:
        return bool(self.udp or self.tcp or self.pins)


class Transitions:
    """One network's groups and forwards, as the kernel is to have them now. Setters take what is wanted."""

    def __init__(self) -> None:
        self.groups: dict[GroupId, Group] = {}
        self.forwards: dict[ListenerKey, Forward] = {}
        self._touched_groups: set[GroupId] = set()
        self._touched_forwards: set[ListenerKey] = set()
        self._drains: dict[ListenerKey, float] = {}
        self._users: dict[GroupId, set[ListenerKey]] = {}
        self._former_users: dict[GroupId, set[ListenerKey]] = {}
        self._unwanted: set[GroupId] = set()
        """Groups that are there only for listeners which have left them."""
        self._moving_groups: Deadlines[GroupId] = Deadlines()
        self._moving_forwards: Deadlines[ListenerKey] = Deadlines()
        self._pinned_groups: set[GroupId] = set()
        self._pinned_forwards: set[ListenerKey] = set()
        self._leaving: Deadlines[tuple[ListenerKey, Member]] = Deadlines()
        self._left_by: dict[ListenerKey, set[Member]] = {}
        """Who is in ``_leaving``, by listener."""
        self._due_udp: dict[IPAddress, set[ListenerKey]] = defaultdict(set)

    def from_there(self, found: Plan, now: float) -> "Transitions":
        """Go on from what an agent before has left in the kernel: what is wanted here counts as a change of that."""
        made = Transitions()
        made._drains = dict(self._drains)
        made._start(found, self.forwards.keys(), now)
        for number in self.groups.keys() - self._unwanted:
            made.set_group(number, self.groups[number].members, now)
        for key, forward in self.forwards.items():
            made.set_forward(key, replace(forward, former=None, pinned=False), now, drain=self._drains[key])
        for key, forward in made.forwards.items():  # since when nodes have left is not known: their time begins anew
            way = forward.former.group if forward.former is not None else forward.group
            if way in made.groups and forward.mode == "dsr":
                before = made.groups[way].former | made.groups[way].members
                made._left(key, before, made._members(forward.group), now)
        made._drop_unused(list(made._unwanted))
        return made

    def _start(self, found: Plan, wanted: Collection[ListenerKey], now: float) -> None:
        self.groups = dict(found.groups)
        self._unwanted = set(found.groups)
        for number, group in found.groups.items():
            if group.former:
                self._moving_groups.set(number, now + MOVING_SECONDS)
        for key in wanted:
            forward = found.forwards.get(key)
            if forward is not None and (forward.group == REFUSE or forward.group in found.groups):
                self._put(key, forward)
                if forward.former is not None:
                    self._moving_forwards.set(key, now + MOVING_SECONDS)

    # What is wanted.

    def set_group(self, number: GroupId, members: frozenset[Member], now: float, cut: Collection[Member] = ()) -> None:
        """A group is to have these members (at least one). ``cut``: whose connections end at once if they leave."""
        self._unwanted.discard(number)
        before = self.groups.get(number)
        if before is None:
            self._put_group(number, Group(members))
            return
        if before.members == members:
            return
        for key in self._users.get(number, ()):
            self._left(key, before.members, members, now, cut)
        if not _by_mac(before.members) or not _by_mac(members):
            self._put_group(number, Group(members))
            return
        former = before.former or before.members
        if former == members:  # back to where it was: what was pinned meanwhile stays
            self._moving_groups.drop(number)
            self._put_group(number, Group(members, pinned=True))
            return
        self._moving_groups.set(number, now + MOVING_SECONDS)
        self._put_group(number, Group(members, former=former))

    def remove_group(self, number: GroupId) -> None:
        """No listener is to use the group; it stays for as long as flows of former users may need it."""
        if number in self.groups:
            self._unwanted.add(number)
            self._drop_unused([number])

    def set_forward(
        self, key: ListenerKey, wanted: Forward, now: float, *, drain: float = 0.0, cut: Collection[Member] = ()
    ) -> None:
        """A listener is to be forwarded like this (without ``former``); its group has been set before. ``cut``: whose
        connections end at once if it leaves by this."""
        self._drains[key] = drain
        before = self.forwards.get(key)
        if before is None:
            self._put(key, wanted)
            return
        if _choice(before) == _choice(wanted):
            self._put(key, replace(wanted, former=before.former, pinned=before.pinned))
            return
        # In another mode they are the same nodes; where nobody was, or nobody is left, it is of no mode.
        if before.mode == wanted.mode or REFUSE in (before.group, wanted.group):
            self._left(key, self._members(before.group), self._members(wanted.group), now, cut)
        former = before.former or _former(before)
        if "dsr" not in (before.mode, wanted.mode, former.mode):  # conntrack knows what is under way
            self._put(key, replace(wanted, pinned=before.pinned))
        elif former == _former(wanted):  # back to where it was
            self._moving_forwards.drop(key)
            self._put(key, replace(wanted, pinned=True))
        elif before.group == REFUSE and before.former is None and not before.pinned:
            self._put(key, wanted)  # nothing was under way
        else:
            self._moving_forwards.set(key, now + MOVING_SECONDS)
            self._put(key, replace(wanted, former=former))

    def remove_forward(self, key: ListenerKey) -> None:
        """The listener is gone, and all that was under way with it."""
        before = self.forwards.pop(key, None)
        if before is None:
            return
        self._drains.pop(key, None)
        self._moving_forwards.drop(key)
        self._pinned_forwards.discard(key)
        for member in self._left_by.pop(key, ()):
            self._leaving.drop((key, member))
        self._touched_forwards.add(key)
        self._unuse(key, before)

    # Time.

    def take_changes(self, now: float) -> Changes:
        """What the kernel is to be told now that it was not told before."""
        self.settle(now)
        changes = Changes(
            groups={g: self.groups.get(g) for g in self._touched_groups},
            forwards={k: self.forwards.get(k) for k in self._touched_forwards},
        )
        self._touched_groups.clear()
        self._touched_forwards.clear()
        return changes

    def settle(self, now: float) -> None:
        """End the moving of what has moved for long enough."""
        for number in self._moving_groups.take(now):
            if number in self.groups:
                self._put_group(number, replace(self.groups[number], former=frozenset(), pinned=True))
        for key in self._moving_forwards.take(now):
            self._put(key, replace(self.forwards[key], former=None, pinned=True))

    def release(self, pinned: Collection[ListenerKey]) -> None:
        """``pinned`` are the listeners that still have pins: what is only there for pins is as wanted for all else."""
        for key in self._pinned_forwards.difference(pinned):
            self._put(key, replace(self.forwards[key], pinned=False))
        for number in [n for n in self._pinned_groups if self._users.get(n, set()).isdisjoint(pinned)]:
            self._put_group(number, replace(self.groups[number], pinned=False))

    def drain_strays(self, flows: Iterable[tuple[ListenerKey, Member]], now: float) -> None:
        """``flows``: to which nodes there are pins, or entries of conntrack. A node of which nothing is known but that,
        has left before this agent came: its time begins."""
        for key, node in flows:
            forward = self.forwards.get(key)
            if forward is None or (key, node) in self._leaving or node in self._members(forward.group):
                continue
            if not isinstance(node, MACAddress):
                if forward.mode == "nat":
                    self._left(key, frozenset([node]), frozenset(), now)
            elif forward.mode == "dsr" and any(node.packed):
                self._left(key, frozenset([node]), frozenset(), now)

    def ends_at(self, now: float) -> bool:
        """Whether any flow's time is over."""
        return bool(self._due_udp) or self._leaving.over(now)

    def due(self, now: float) -> Due:
        """Return, once, the flows whose time is over."""
        found = Due()
        if self._due_udp:
            found.udp, self._due_udp = self._due_udp, defaultdict(set)
        for key, member in self._leaving.take(now):
            self._no_more_leaving(key, member)
            if isinstance(member, MACAddress):
                found.pins[member].add(key)
                self._no_way_back(key, member)
            else:
                found.tcp[member].add(key)
        return found

    def _no_way_back(self, key: ListenerKey, member: MACAddress) -> None:
        """What goes on as before goes to this node no more: a flow that is unpinned would only be pinned anew."""
        forward = self.forwards[key]
        former = forward.former
        if former is not None and member in self._members(former.group):
            self._moving_forwards.drop(key)
            self._put(key, replace(forward, former=None, pinned=True))
        group = self.groups.get(forward.group)
        if group is not None and member in group.former:
            left = group.former - {member}
            if left and left != group.members:
                self._put_group(forward.group, replace(group, former=left))
            else:
                self._moving_groups.drop(forward.group)
                self._put_group(forward.group, Group(group.members, pinned=True))

    def again(self, undone: Due, now: float) -> None:
        """The kernel refused to end these flows: they are due again."""
        for address, keys in undone.udp.items():
            self._due_udp[address] |= keys
        for member, keys in (*undone.tcp.items(), *undone.pins.items()):
            for key in keys & self.forwards.keys():
                self._leaves(key, member, now, drain=0.0)

    def draining(self, addresses: AbstractSet[IPAddress]) -> AbstractSet[IPAddress]:
        """Those of some nodes' addresses to which flows go on for a while, though they have left."""
        left = {member for key, of in self._left_by.items() for member in of if (key, member) in self._leaving}
        return {address for address in addresses if address in left or address in self._due_udp}

    @property
    def has_pinned(self) -> bool:
        """Whether anything waits for the end of pins."""
        return bool(self._pinned_groups or self._pinned_forwards)

    @property
    def busy(self) -> bool:
        """Whether time alone will change something."""
        return bool(self._moving_groups or self._moving_forwards or self._leaving or self._due_udp or self.has_pinned)

    # Inside.

    def _members(self, number: GroupId) -> frozenset[Member]:
        group = self.groups.get(number)
        return group.members if group is not None else frozenset()

    def _left(
        self,
        key: ListenerKey,
        before: frozenset[Member],
        after: frozenset[Member],
        now: float,
        cut: Collection[Member] = (),
    ) -> None:
        for member in after & self._left_by.get(key, set()):
            self._no_more_leaving(key, member)
        for member in before - after:
            if key.protocol == "UDP" and not isinstance(member, MACAddress):
                self._due_udp[member].add(key)
            else:
                self._leaves(key, member, now, drain=0.0 if member in cut else None)

    def _leaves(self, key: ListenerKey, member: Member, now: float, *, drain: float | None = None) -> None:
        """A node has left a listener; its time is the listener's ``drain``, for UDP none."""
        if drain is None:
            drain = self._drains.get(key, 0.0) if key.protocol == "TCP" else 0.0
        self._leaving.set((key, member), now + drain)
        self._left_by.setdefault(key, set()).add(member)

    def _no_more_leaving(self, key: ListenerKey, member: Member) -> None:
        """A node has come back to a listener, or its time is over."""
        self._leaving.drop((key, member))
        left = self._left_by[key]
        left.discard(member)
        if not left:
            del self._left_by[key]

    def _put_group(self, number: GroupId, group: Group) -> None:
        if self.groups.get(number) != group:
            self.groups[number] = group
            self._touched_groups.add(number)
            (self._pinned_groups.add if group.pinned else self._pinned_groups.discard)(number)

    def _put(self, key: ListenerKey, forward: Forward) -> None:
        before = self.forwards.get(key)
        if before == forward:
            return
        self.forwards[key] = forward
        self._touched_forwards.add(key)
        (self._pinned_forwards.add if forward.pinned else self._pinned_forwards.discard)(key)
        self._users.setdefault(forward.group, set()).add(key)
        if forward.former is not None:
            self._former_users.setdefault(forward.former.group, set()).add(key)
        if before is not None:
            self._unuse(key, before)

    def _unuse(self, key: ListenerKey, before: Forward) -> None:
        after = self.forwards.get(key)
        if after is None or after.group != before.group:
            _discard(self._users, before.group, key)
        left = {before.group}
        if before.former is not None and (
            after is None or after.former is None or after.former.group != before.former.group
        ):
            _discard(self._former_users, before.former.group, key)
            left.add(before.former.group)
        self._drop_unused(left)

    def _drop_unused(self, numbers: Iterable[GroupId]) -> None:
        for number in numbers:
            if number in self._unwanted and number not in self._users and number not in self._former_users:
                self._unwanted.discard(number)
                self._moving_groups.drop(number)
                self._pinned_groups.discard(number)
                if self.groups.pop(number, None) is not None:
                    self._touched_groups.add(number)


def _discard(users: dict[GroupId, set[ListenerKey]], number: GroupId, key: ListenerKey) -> None:
    keys = users.get(number)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del users[number]


def _by_mac(members: frozenset[Member]) -> bool:
    return any(isinstance(member, MACAddress) for member in members)


def _choice(forward: Forward) -> tuple[object, ...]:
    return forward.mode, forward.group, forward.by_client


def _former(forward: Forward) -> Former:
    if forward.mode == "nat":
        return Former("nat")
    return Former("dsr", forward.group, forward.by_client)
