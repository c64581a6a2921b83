"""What an engine holds, and what it refuses: the same rules for the kernel's engine and for the fake."""

import errno
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, ListenerKey, Plan

LAST_GROUP: Final = GroupId((1 << 24) - 1)


class Ledger:
    """Groups and forwards, and how many forwards use each group. A delta costs what it changes, not what is held."""

    def __init__(self) -> None:
        self.groups: dict[GroupId, Group] = {}
        self.forwards: dict[ListenerKey, Forward] = {}
        self._uses: Counter[GroupId] = Counter()

    def check(self, changes: Changes) -> None:
        """Raise DataPlaneError if the delta does not fit what is held; the message names what, and what to do."""
        for number, group in changes.groups.items():
            if group is not None:
                _check_group(number, group)
        uses: Counter[GroupId] = Counter()
        for key, forward in changes.forwards.items():
            old = self.forwards.get(key)
            if old is not None:
                uses[old.group] -= 1
            if forward is None:
                continue
            _check_forward(key, forward)
            uses[forward.group] += 1
            if forward.group and not changes.groups.get(forward.group, self.groups.get(forward.group)):
                raise DataPlaneError(
                    f"{_name(key)} forwards to group {forward.group}, which is not there; add the group with it",
                    errno=errno.ENOENT,
                )
        for number, group in changes.groups.items():
            if group is None and number in self.groups and self._uses[number] + uses[number]:
                raise DataPlaneError(
                    f"group {number} can't be removed: {self._uses[number] + uses[number]} forwards use it; "
                    "change or remove them with it",
                    errno=errno.EBUSY,
                )

    def commit(self, changes: Changes) -> None:
        """Take over a delta that was carried out."""
        for number, group in changes.groups.items():
            if group is None:
                self.groups.pop(number, None)
            else:
                self.groups[number] = group
        for key, forward in changes.forwards.items():
            old = self.forwards.pop(key, None)
            if old is not None:
                self._uses[old.group] -= 1
            if forward is not None:
                self.forwards[key] = forward
                self._uses[forward.group] += 1

    def replace(self, plan: Plan) -> None:
        """Hold exactly this."""
        self.groups = dict(plan.groups)
        self.forwards = dict(plan.forwards)
        self._uses = Counter(f.group for f in plan.forwards.values())

    def plan(self) -> Plan:
        """A copy of what is held."""
        return Plan(groups=dict(self.groups), forwards=dict(self.forwards))


def _check_group(number: GroupId, group: Group) -> None:
    if not 1 <= number <= LAST_GROUP:
        raise _refused(f"group {number} is out of range; use 1 to {LAST_GROUP}")
    if not group.members:
        raise _refused(f"group {number} has no nodes; point its forwards to group 0, which refuses, and remove it")
    for node in group.members:
        if not isinstance(node, IPv4Address):
            raise _refused(f"group {number}: node {node} is no IPv4 address, which is all that is forwarded to yet")


def _check_forward(key: ListenerKey, forward: Forward) -> None:
    if not isinstance(key.vip, IPv4Address):
        raise _refused(f"{_name(key)} is IPv6, which this data plane does not forward yet")
    if not 1 <= key.port <= 65535:
        raise _refused(f"{_name(key)}: the port is out of range; use 1 to 65535")
    if not 1 <= forward.backend_port <= 65535:
        raise _refused(f"{_name(key)}: backend port {forward.backend_port} is out of range; use 1 to 65535")
    if not 0 <= forward.group <= LAST_GROUP:
        raise _refused(f"{_name(key)}: group {forward.group} is out of range; use 0 to {LAST_GROUP}")
    for source in forward.sources:
        if not isinstance(source, IPv4Network):
            raise _refused(f"{_name(key)}: source range {source} is IPv6, the address is IPv4; leave it out")


def _name(key: ListenerKey) -> str:
    return f"{key.vip} {key.protocol} {key.port}"


def _refused(sentence: str) -> DataPlaneError:
    return DataPlaneError(sentence, errno=errno.EINVAL)
