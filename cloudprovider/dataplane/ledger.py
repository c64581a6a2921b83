"""What an engine holds, and what it refuses: the same rules for the kernel's engine and for the fake."""

import errno
from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.maglev import SIZES
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey, Member, Plan
from cloudprovider.dataplane.standing import Standing

LAST_GROUP: Final = GroupId((1 << 24) - 1)
MOST_MEMBERS: Final = SIZES[-1]

Kind = Literal["IPv4 addresses", "IPv6 addresses", "MACs"]
"""What a group knows its nodes by."""


def kind(member: Member) -> Kind:
    """What this member is."""
    if isinstance(member, MACAddress):
        return "MACs"
    return "IPv4 addresses" if member.version == 4 else "IPv6 addresses"


def kind_of(group: Group) -> Kind:
    """What the members of a group, which has some, are."""
    return kind(next(iter(group.members)))


def changing(group: Group) -> bool:
    """Whether flows to a group may be pinned."""
    return group.pinned or bool(group.former)


def _tracked(forward: Forward, group: Group | None) -> bool:
    return forward.pinned or forward.former is not None or (group is not None and changing(group))


class Ledger:
    """Groups and forwards, and who uses each group. A delta costs what it changes, not what is held."""

    def __init__(self) -> None:
        self.groups: dict[GroupId, Group] = {}
        self.forwards: dict[ListenerKey, Forward] = {}
        self._uses: dict[GroupId, Counter[IPAddress]] = {}
        """How many forwards of each VIP use a group, now or as what they come from."""

    def check(self, changes: Changes, standing: Standing) -> None:
        """Raise DataPlaneError if the delta does not fit what is held; the message names what, and what to do."""
        for number, group in changes.groups.items():
            if group is not None:
                _check_group(number, group, standing)
        gone: Counter[GroupId] = Counter()
        come: Counter[GroupId] = Counter()
        for key, forward in changes.forwards.items():
            gone.update(_used(self.forwards.get(key)))
            if forward is not None:
                _check_forward(key, forward, standing)
                self._check_groups(key, forward, changes)
                come.update(_used(forward))
        for number, group in changes.groups.items():
            stay = self._uses.get(number, Counter()).total() - gone[number]
            if group is None and number in self.groups and stay + come[number]:
                raise DataPlaneError(
                    f"group {number} can't be removed: {stay + come[number]} forwards use it; "
                    "change or remove them with it",
                    errno=errno.EBUSY,
                )
            if group is not None and stay:
                self._check_users(number, group)

    def commit(self, changes: Changes) -> None:
        """Take over a delta that was carried out."""
        for number, group in changes.groups.items():
            if group is None:
                self.groups.pop(number, None)
            else:
                self.groups[number] = group
        for key, forward in changes.forwards.items():
            for used in _used(self.forwards.pop(key, None)):
                self._count(used, key.vip, -1)
            if forward is not None:
                self.forwards[key] = forward
                for used in _used(forward):
                    self._count(used, key.vip, 1)

    def replace(self, plan: Plan) -> None:
        """Hold exactly this."""
        self.groups = dict(plan.groups)
        self.forwards = {}
        self._uses = {}
        self.commit(Changes(forwards=dict(plan.forwards)))

    def plan(self) -> Plan:
        """A copy of what is held."""
        return Plan(groups=dict(self.groups), forwards=dict(self.forwards))

    def tracked(self, key: ListenerKey) -> bool:
        """Whether flows of this listener may be pinned: it, or its group, is changing or pinned."""
        forward = self.forwards.get(key)
        return forward is not None and _tracked(forward, self.groups.get(forward.group))

    def all_tracked(self) -> Iterator[ListenerKey]:
        """All of these."""
        return filter(self.tracked, self.forwards)

    def ends(self, changes: Changes) -> bool:
        """Whether a delta that is not held yet ends what may have pinned flows."""
        for number, group in changes.groups.items():
            before = self.groups.get(number)
            if before is not None and changing(before) and (group is None or not changing(group)):
                return True
        for key, forward in changes.forwards.items():
            if self.tracked(key):
                if forward is None:
                    return True
                if not _tracked(forward, changes.groups.get(forward.group, self.groups.get(forward.group))):
                    return True
        return False

    def _count(self, group: GroupId, vip: IPAddress, by: int) -> None:
        users = self._uses.setdefault(group, Counter())
        users[vip] += by
        if not users[vip]:
            del users[vip]
        if not users:
            del self._uses[group]

    def _check_groups(self, key: ListenerKey, forward: Forward, changes: Changes) -> None:
        """Whether the groups that a forward names are there, and of the right kind."""
        address: Kind = "IPv4 addresses" if key.vip.version == 4 else "IPv6 addresses"
        named = [(forward.group, forward.mode, "to")] if forward.group else []
        if forward.former is not None and forward.former.group:
            named.append((forward.former.group, forward.former.mode, "from"))
        for number, mode, way in named:
            group = changes.groups[number] if number in changes.groups else self.groups.get(number)
            if group is None:
                raise DataPlaneError(
                    f"{_name(key)} forwards {way} group {number}, which is not there; add the group with it",
                    errno=errno.ENOENT,
                )
            wanted: Kind = "MACs" if mode == "dsr" else address
            if group.members and kind_of(group) != wanted:
                raise _refused(
                    f"{_name(key)} forwards in mode {mode} {way} group {number}, whose members are {kind_of(group)}; "
                    f"it takes a group of {wanted}"
                )
            if key.vip in group.members:
                raise _refused(f"{_name(key)} forwards to group {number}, which has that very address as a node")

    def _check_users(self, number: GroupId, group: Group) -> None:
        """Whether a group that comes fits the forwards that it has already."""
        held = self.groups.get(number)
        if held is not None and held.members and kind_of(held) != kind_of(group):
            raise _refused(
                f"group {number} can't come to have {kind_of(group)} as members instead of {kind_of(held)} while "
                "forwards use it; take another number"
            )
        users = self._uses[number]
        for member in group.members if len(group.members) < len(users) else list(users):
            if member in users and member in group.members:
                raise _refused(f"group {number}: node {member} is an address that forwards to this group")


def _used(forward: Forward | None) -> Iterator[GroupId]:
    """The groups that a forward uses."""
    if forward is not None and forward.group:
        yield forward.group
    if forward is not None and forward.former is not None and forward.former.group:
        yield forward.former.group


def _check_group(number: GroupId, group: Group, standing: Standing) -> None:
    if not 1 <= number <= LAST_GROUP:
        raise _refused(f"group {number} is out of range; use 1 to {LAST_GROUP}")
    if not group.members:
        raise _refused(f"group {number} has no nodes; point its forwards to group 0, which refuses, and remove it")
    kinds = {kind(member) for member in group.members | group.former}
    if len(kinds) != 1:
        raise _refused(f"group {number} mixes {' and '.join(sorted(kinds))}; make a group for each")
    if len(group.members) > MOST_MEMBERS or len(group.former) > MOST_MEMBERS:
        raise _refused(f"group {number} has more than {MOST_MEMBERS} nodes; split it")
    if group.former and group.pinned:
        raise _refused(f"group {number} is both changing and pinned; what changes (former) keeps its pins anyhow")
    if (group.former or group.pinned) and kinds != {"MACs"}:
        raise _refused(
            f"group {number} has {kinds.pop()}, whose flows conntrack remembers; leave former and pinned out"
        )
    for member in group.members | group.former:
        if why := _unfit(member, standing):
            raise _refused(f"group {number}: node {member} {why}")


def _unfit(member: Member, standing: Standing) -> str:
    """Why no packet could ever reach this node; "" for a good one."""
    if isinstance(member, MACAddress):
        if not member.is_unicast:
            return "is not the MAC of one machine"
        return "is this host's own MAC on the network" if member == standing.mac else ""
    for wrong, why in (
        (member.is_unspecified, "is the unspecified address"),
        (member.is_loopback, "is a loopback address"),
        (member.is_multicast, "is a multicast address"),
        (member.version == 6 and member.is_link_local, "is a link-local address; give one that is routed"),
        (member.packed == b"\xff\xff\xff\xff", "is the broadcast address"),
    ):
        if wrong:
            return why
    own = standing.own if member.version == 4 else standing.own6
    if own is None:
        return f"can't be reached: this network has no IPv{member.version} address for this host; {_ADDRESS_LACKS}"
    if member == own.ip:
        return "is this host's own address on the network"
    if member.version == 4 and own.network.prefixlen < 31 and member == own.network.broadcast_address:
        return f"is the broadcast address of {own.network}"
    return ""


_ADDRESS_LACKS: Final = "give it one in the networks file, or use mode dsr"


def _check_forward(key: ListenerKey, forward: Forward, standing: Standing) -> None:
    if key.vip.version == 6 and not standing.ipv6:
        raise _refused(f"{_name(key)} is IPv6, which this network's link has not got")
    if not 1 <= key.port <= 65535:
        raise _refused(f"{_name(key)}: the port is out of range; use 1 to 65535")
    if not 0 <= forward.group <= LAST_GROUP:
        raise _refused(f"{_name(key)}: group {forward.group} is out of range; use 0 to {LAST_GROUP}")
    if forward.mode == "nat":
        if not 1 <= forward.backend_port <= 65535:
            raise _refused(f"{_name(key)}: backend port {forward.backend_port} is out of range; use 1 to 65535")
        own = standing.own if key.vip.version == 4 else standing.own6
        if forward.group and own is None:
            lacks = f"this network has no IPv{key.vip.version} address for this host"
            raise _refused(f"{_name(key)} can't be forwarded in mode nat: {lacks}; {_ADDRESS_LACKS}")
    else:
        if forward.backend_port:
            raise _refused(
                f"{_name(key)}: in mode dsr a port is not changed; leave backend port {forward.backend_port} out"
            )
        if not forward.group:
            raise _refused(f"{_name(key)}: in mode dsr there is no group 0; use mode nat to refuse")
        if not standing.dsr:
            raise _refused(
                f"{_name(key)} can't be forwarded in mode dsr: this kernel can't pass frames on; use mode nat"
            )
    for source in forward.sources:
        if source.version != key.vip.version:
            raise _refused(
                f"{_name(key)}: source range {source} is IPv{source.version}, the address is IPv{key.vip.version}; "
                "leave it out"
            )
    _check_former(key, forward)
    if forward.predecessor is not None:
        _check_predecessor(key, forward, forward.predecessor, standing)


def _check_former(key: ListenerKey, forward: Forward) -> None:
    former = forward.former
    if former is None:
        return
    if forward.pinned:
        raise _refused(f"{_name(key)} is both changing and pinned; what changes (former) keeps its pins anyhow")
    if not 0 <= former.group <= LAST_GROUP:
        raise _refused(f"{_name(key)}: former group {former.group} is out of range; use 0 to {LAST_GROUP}")
    if former.mode == "nat":
        if forward.mode == "nat":
            raise _refused(f"{_name(key)} stays in mode nat, where conntrack remembers flows; leave former out")
        if former.group or former.by_client:
            raise _refused(f"{_name(key)}: a former mode nat has neither group nor affinity; leave them out")
    elif not former.group:
        raise _refused(f"{_name(key)}: in a former mode dsr there is no group 0; leave former out")


def _check_predecessor(key: ListenerKey, forward: Forward, host: IPAddress, standing: Standing) -> None:
    what = f"{_name(key)}: {host}, the host that had the address before,"
    if forward.mode == "dsr":
        raise _refused(f"{what} knows no more of mode dsr than this one; leave it out")
    if key.protocol == "UDP":
        raise _refused(f"{what} can't know more of UDP, which has no beginning that could be told; leave it out")
    if not standing.hands_over:
        raise _refused(f"{what} can't be sent to: this kernel can't copy packets; leave it out")
    if host.version != key.vip.version:
        raise _refused(f"{what} is IPv{host.version}, the address is IPv{key.vip.version}; leave it out")
    if why := _unfit(host, standing):
        raise _refused(f"{what} {why}")
    if host == key.vip:
        raise _refused(f"{what} has that very address as its own")


def _name(key: ListenerKey) -> str:
    return f"{key.vip} {key.protocol} {key.port}"


def _refused(sentence: str) -> DataPlaneError:
    return DataPlaneError(sentence, errno=errno.EINVAL)
