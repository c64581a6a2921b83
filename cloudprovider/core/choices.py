"""Which mode the addresses of each cluster are forwarded in, as clusters, networks and load balancers change. Pure.

One choice stands for all load balancers of a cluster that ask for the same in the same subnet: a node that comes or
goes costs a handful of choices, however many load balancers there are. What follows from them all, which nodes matter
on a network, is counted as they change: it is asked for at every turn. :mod:`cloudprovider.core.modes` says how one is
made.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from cloudprovider.core.answerers import Where
from cloudprovider.core.exchange import Mode
from cloudprovider.core.modes import Choice, NetworkFacts, choose, choose_for_machines, stands
from cloudprovider.core.plan import IPAddress, IPNetwork
from cloudprovider.core.wanted import LoadBalancerKey, Wanted, WantedListener

T = TypeVar("T")

ClusterKey = tuple[str, str]
"""(namespace, name) of a GuestCluster; or of the virtual machines of one load balancer, which are a cluster of their
own (:func:`cloudprovider.core.wanted.cluster_of`)."""


@dataclass(frozen=True, order=True)
class Question:
    """What a mode is chosen for."""

    cluster: ClusterKey
    network: str
    subnet: IPNetwork
    asked: Mode


@dataclass
class _Network:
    """``clusters``: how many questions are about each; ``standing``: in the subnets of how many a node stands."""

    facts: NetworkFacts = field(default_factory=NetworkFacts)
    clusters: dict[ClusterKey, int] = field(default_factory=dict)
    standing: dict[IPAddress, int] = field(default_factory=dict)
    followed: frozenset[IPAddress] | None = None
    addresses: frozenset[IPAddress] | None = None


class Choices:
    """The choices that are in use, and who uses them. ``networks``: those that this host stands on."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = {network: _Network() for network in networks}
        self._nodes: dict[ClusterKey, frozenset[IPAddress]] = {}
        self._machines: dict[ClusterKey, tuple[frozenset[IPAddress], str]] = {}
        self._answers: dict[Question, Choice] = {}
        self._askers: dict[Question, set[LoadBalancerKey]] = {}
        self._answerers: dict[Where, frozenset[str]] = {}
        self._about: dict[ClusterKey, set[Question]] = {}

    def __getitem__(self, question: Question) -> Choice:
        """What was chosen; somebody must have asked."""
        return self._answers[question]

    def ask(self, lb: LoadBalancerKey, before: Wanted | None, after: Wanted | None) -> None:
        """A load balancer wants something else than before (None: nothing)."""
        old, new = _questions(before), _questions(after)
        for question in new:
            if question not in self._answers:
                self._enter(question)
            self._askers.setdefault(question, set()).add(lb)
        for question in old - new:
            askers = self._askers[question]
            askers.discard(lb)
            if not askers:
                self._leave(question)

    def set_facts(self, network: str, facts: NetworkFacts) -> frozenset[LoadBalancerKey]:
        """How this host stands on a network; return the load balancers whose mode has changed by it."""
        about = [q for q in self._answers if q.network == network]
        for question in about:
            self._count(question, self._nodes.get(question.cluster, frozenset()), -1)
        self._networks[network].facts = facts
        for question in about:
            self._count(question, self._nodes.get(question.cluster, frozenset()), 1)
        return self._again(about)

    def set_nodes(self, cluster: ClusterKey, nodes: frozenset[IPAddress]) -> frozenset[LoadBalancerKey]:
        """All addresses of a cluster's nodes; return the load balancers whose mode has changed by it."""
        before = self._nodes.pop(cluster, frozenset())
        if nodes:
            self._nodes[cluster] = nodes
        about = self._about.get(cluster, set())
        for question in about:
            self._count(question, before - nodes, -1)
            self._count(question, nodes - before, 1)
            self._networks[question.network].addresses = None
        return self._again(about)

    def set_machines(
        self, cluster: ClusterKey, machines: frozenset[IPAddress], obstacle: str
    ) -> frozenset[LoadBalancerKey]:
        """All addresses of a load balancer's virtual machines, and what stands in the way of dsr there; they are
        neither followed nor among ``node_addresses``. Return the load balancers whose mode has changed by it."""
        self._machines[cluster] = machines, obstacle
        return self._again(self._about.get(cluster, ()))

    def forget_machines(self, cluster: ClusterKey) -> bool:
        """Their load balancer is gone, if there were any; return whether there were."""
        return self._machines.pop(cluster, None) is not None

    def set_answerers(self, where: Where, nodes: frozenset[str]) -> frozenset[LoadBalancerKey]:
        """Which of a cluster's nodes answer for addresses themselves; return the load balancers whose mode, or the
        reason for it, has changed by it."""
        self._answerers.pop(where, None)
        if nodes:
            self._answerers[where] = nodes
        network, cluster = where
        return self._again([q for q in self._about.get(cluster, ()) if q.network == network])

    def answerers(self, where: Where) -> frozenset[str]:
        """Which of a cluster's nodes answer for addresses themselves."""
        return self._answerers.get(where, frozenset())

    def followed(self, network: str) -> frozenset[IPAddress]:
        """The nodes whose MACs are to be known on a network: all that stand where frames for an address can go to, also
        where it is forwarded in mode nat, so that a change to dsr finds them."""
        here = self._networks[network]
        if here.followed is None:
            here.followed = frozenset(here.standing)
        return here.followed

    def node_addresses(self, network: str) -> frozenset[IPAddress]:
        """Every node that load balancers on a network may go to."""
        here = self._networks[network]
        if here.addresses is None:
            here.addresses = frozenset[IPAddress]().union(*(self._nodes.get(c, ()) for c in here.clusters))
        return here.addresses

    def _enter(self, question: Question) -> None:
        self._answers[question] = self._answer(question)
        self._about.setdefault(question.cluster, set()).add(question)
        self._count(question, self._nodes.get(question.cluster, frozenset()), 1)
        here = self._networks[question.network]
        here.addresses = None
        _add(here.clusters, question.cluster, 1)

    def _leave(self, question: Question) -> None:
        del self._askers[question], self._answers[question]
        about = self._about[question.cluster]
        about.discard(question)
        if not about:
            del self._about[question.cluster]
        self._count(question, self._nodes.get(question.cluster, frozenset()), -1)
        here = self._networks[question.network]
        here.addresses = None
        _add(here.clusters, question.cluster, -1)

    def _count(self, question: Question, nodes: frozenset[IPAddress], step: int) -> None:
        here = self._networks[question.network]
        for node in nodes:
            if stands(question.asked, question.subnet, node, here.facts):
                _add(here.standing, node, step)
                here.followed = None

    def _answer(self, question: Question) -> Choice:
        network, cluster, subnet = question.network, question.cluster, question.subnet
        facts = self._networks[network].facts
        if cluster in self._machines:
            machines, obstacle = self._machines[cluster]
            return choose_for_machines(question.asked, subnet, machines, facts, obstacle)
        nodes = self._nodes.get(cluster, frozenset())
        return choose(question.asked, subnet, nodes, facts, self.answerers((network, cluster)))

    def _again(self, questions: Iterable[Question]) -> frozenset[LoadBalancerKey]:
        changed: set[LoadBalancerKey] = set()
        for question in questions:
            answer = self._answer(question)
            if answer != self._answers[question]:
                self._answers[question] = answer
                changed |= self._askers[question]
        return frozenset(changed)


def question_of(want: Wanted, listener: WantedListener) -> Question:
    """What the mode of a listener depends on."""
    return Question(want.cluster, listener.network, listener.subnet, want.mode)


def _questions(want: Wanted | None) -> frozenset[Question]:
    return frozenset() if want is None else frozenset(question_of(want, x) for x in want.listeners)


def _add(counts: dict[T, int], what: T, step: int) -> None:
    counts[what] = counts.get(what, 0) + step
    if not counts[what]:
        del counts[what]
