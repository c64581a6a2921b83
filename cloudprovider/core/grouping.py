"""Which groups are in use on each network, by which listeners, and who is in them. Pure."""

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from functools import partial

from cloudprovider.core.choices import ClusterKey
from cloudprovider.core.groups import GroupIds, GroupKey, members
from cloudprovider.core.plan import GroupId, IPAddress, ListenerKey, Member
from cloudprovider.core.reach import Reach
from cloudprovider.core.transitions import REFUSE, Transitions


class Grouping:
    """The groups of all ``networks`` that this host stands on. ``reach`` says how their nodes are reached; ``failing``:
    the nodes that probes have found unfit."""

    def __init__(self, networks: Iterable[str], reach: Reach) -> None:
        self.failing: frozenset[IPAddress] = frozenset()
        self.passing: dict[ClusterKey, frozenset[str]] = {}
        """Of virtual machines that are checked, those that pass. A cluster of them is one load balancer's alone, so its
        group stays the same one: of a group that changes, the kernel takes what differs, of another one all of it."""
        self._reach = reach
        self._users: dict[str, dict[GroupKey, set[ListenerKey]]] = {network: {} for network in networks}
        self._ids = GroupIds()

    def members(self, network: str, group: GroupKey) -> frozenset[Member]:
        """Who is in a group, as a network sees it."""
        cluster = group.namespace, group.cluster
        reach = partial(self._reach.member, network, group.mode, cluster)
        nodes = self._reach.nodes(cluster)
        if (passing := self.passing.get(cluster)) is not None:
            nodes = {name: node for name, node in nodes.items() if name in passing}
        return members(group, nodes, failing=self.failing, reach=reach)

    def of(self, network: str, clusters: Collection[ClusterKey]) -> list[GroupKey]:
        """The groups of some clusters that are in use on a network."""
        return [group for group in self._users[network] if (group.namespace, group.cluster) in clusters]

    def by_mac(self, network: str) -> list[GroupKey]:
        """Those to which frames are passed on, in mode dsr."""
        return [group for group in self._users[network] if group.mode == "dsr"]

    def users(self, network: str, group: GroupKey) -> AbstractSet[ListenerKey]:
        """The listeners that go to a group."""
        return self._users[network].get(group, frozenset())

    def join(self, network: str, group: GroupKey, listener: ListenerKey) -> None:
        """A listener goes to a group."""
        self._users[network].setdefault(group, set()).add(listener)

    def part(self, network: str, group: GroupKey, listener: ListenerKey) -> None:
        """A listener goes to it no more; where it was the last, :meth:`leave` is to follow."""
        self._users[network].get(group, set()).discard(listener)

    def enter(
        self, network: str, group: GroupKey, kernel: Transitions, now: float, cut: Collection[Member] = ()
    ) -> GroupId:
        """Have a group in a network's ``kernel`` as it is now; return its number, 0 while it has no member. ``cut``:
        whose connections end at once if they leave by this."""
        found = self.members(network, group)
        if not found:
            return REFUSE
        number = self._ids.give(group)
        kernel.set_group(number, found, now, cut)
        return number

    def empty(self, group: GroupKey, kernel: Transitions) -> None:
        """Nobody is in a group any more: no listener goes to it."""
        number = self._ids.find(group)
        if number is not None:
            kernel.remove_group(number)

    def leave(self, network: str, group: GroupKey, kernel: Transitions) -> None:
        """Take a group off a network where no listener goes to it; forget its number where none does anywhere."""
        if self.users(network, group):
            return
        self._users[network].pop(group, None)
        self.empty(group, kernel)
        if not any(group in users for users in self._users.values()):
            self._ids.take_back(group)
