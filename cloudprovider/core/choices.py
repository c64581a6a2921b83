"""Which mode the addresses of each cluster are forwarded in, as clusters, networks and load balancers change. Pure.

One choice stands for all load balancers of a cluster that ask for the same in the same subnet: a node that comes or
goes costs a handful of choices, however many load balancers there are. :mod:`cloudprovider.core.modes` says how one is
made.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cloudprovider.core.exchange import Mode
from cloudprovider.core.modes import Choice, NetworkFacts, choose
from cloudprovider.core.plan import IPAddress, IPNetwork
from cloudprovider.core.wanted import LoadBalancerKey, Wanted, WantedListener

ClusterKey = tuple[str, str]
"""(namespace, name) of a GuestCluster."""


@dataclass(frozen=True, order=True)
class Question:
    """What a mode is chosen for."""

    cluster: ClusterKey
    network: str
    subnet: IPNetwork
    asked: Mode


class Choices:
    """The choices that are in use, and who uses them. ``networks``: those that this host stands on."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._facts = {network: NetworkFacts() for network in networks}
        self._nodes: dict[ClusterKey, frozenset[IPAddress]] = {}
        self._answers: dict[Question, Choice] = {}
        self._askers: dict[Question, set[LoadBalancerKey]] = {}

    def __getitem__(self, question: Question) -> Choice:
        """What was chosen; somebody must have asked."""
        return self._answers[question]

    def ask(self, lb: LoadBalancerKey, before: Wanted | None, after: Wanted | None) -> None:
        """A load balancer wants something else than before (None: nothing)."""
        old, new = _questions(before), _questions(after)
        for question in new:
            if question not in self._answers:
                self._answers[question] = self._answer(question)
            self._askers.setdefault(question, set()).add(lb)
        for question in old - new:
            askers = self._askers[question]
            askers.discard(lb)
            if not askers:
                del self._askers[question], self._answers[question]

    def set_facts(self, network: str, facts: NetworkFacts) -> frozenset[LoadBalancerKey]:
        """How this host stands on a network; return the load balancers whose mode has changed by it."""
        self._facts[network] = facts
        return self._again([q for q in self._answers if q.network == network])

    def set_nodes(self, cluster: ClusterKey, nodes: frozenset[IPAddress]) -> frozenset[LoadBalancerKey]:
        """All addresses of a cluster's nodes; return the load balancers whose mode has changed by it."""
        if nodes:
            self._nodes[cluster] = nodes
        else:
            self._nodes.pop(cluster, None)
        return self._again([q for q in self._answers if q.cluster == cluster])

    def followed(self, network: str) -> frozenset[IPAddress]:
        """The nodes whose MACs are to be known on a network: all that stand in the subnet of an address, also where it
        is forwarded in mode nat, so that a change to dsr finds them."""
        found: set[IPAddress] = set()
        for question in self._answers:
            if question.network == network:
                nodes = self._nodes.get(question.cluster, frozenset())
                found |= {node for node in nodes if node in question.subnet}
        return frozenset(found)

    def node_addresses(self, network: str) -> frozenset[IPAddress]:
        """Every node that load balancers on a network may go to."""
        clusters = {question.cluster for question in self._answers if question.network == network}
        return frozenset[IPAddress]().union(*(self._nodes.get(c, frozenset()) for c in clusters))

    def _answer(self, question: Question) -> Choice:
        nodes = self._nodes.get(question.cluster, frozenset())
        return choose(question.asked, question.subnet, nodes, self._facts[question.network])

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
