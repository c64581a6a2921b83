"""What an agent counts as it happens. What the kernel counts is read at each scrape (:mod:`.readings`).

Made once for a program: it goes on when another agent has served meanwhile. Nothing of it is in the way of a change on
its way to the kernel: a microsecond for each transaction.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.metrics import agent as metrics
from cloudprovider.core.questions import GrpcHealth, HttpGet, Question
from cloudprovider.kube.registry import Readings, Registry
from cloudprovider.probe.api import Prober, Target


class NetworkMetrics:
    """Of one network."""

    def __init__(self, of: "AgentMetrics", network: str) -> None:
        name = label(network)
        self._apply = of.apply.labels(name)
        self._read_back = of.read_back.labels(name)
        self._refusals = of.refusals.labels(name)
        self._conflicts = of.conflicts.labels(name)
        self._claims = of.claims.labels(name)
        self._returned = of.returned.labels(name)
        self._repairs = {
            what: of.repairs.labels(name, what) for what in ("rules", "listeners", "groups", "neighbours", "addresses")
        }

    def applied(self, seconds: float) -> None:
        """A change is in the kernel."""
        self._apply.observe(seconds)

    def read_back(self, seconds: float) -> None:
        """All rules were read back, compared and mended."""
        self._read_back.observe(seconds)

    def refused(self) -> None:
        """The kernel did not take what it was told."""
        self._refusals.inc()

    def repaired(self, what: str, number: int = 1) -> None:
        """Somebody else's changes were undone: of rules, listeners, groups, neighbours, addresses."""
        self._repairs[what].inc(number)

    def conflicted(self) -> None:
        """An address was not brought up, as somebody else has it."""
        self._conflicts.inc()

    def claimed(self) -> None:
        """Somebody else claimed an address that is up."""
        self._claims.inc()

    def returned(self) -> None:
        """A node was seen to send frames back."""
        self._returned.inc()


class AgentMetrics:
    """Of all networks."""

    def __init__(self, registry: Registry) -> None:
        self.apply = registry.histogram(metrics.APPLY_SECONDS)
        self.read_back = registry.histogram(metrics.READ_BACK_SECONDS)
        self.refusals = registry.counter(metrics.REFUSALS)
        self.repairs = registry.counter(metrics.REPAIRS)
        self.conflicts = registry.counter(metrics.CONFLICTS)
        self.claims = registry.counter(metrics.FOREIGN_CLAIMS)
        self.returned = registry.counter(metrics.RETURNED)
        takeovers = registry.counter(metrics.TAKEOVERS)
        self._takeovers = {other: takeovers.labels(other) for other in ("living", "dead")}
        self._networks: dict[str, NetworkMetrics] = {}
        self._probes: Counter[tuple[str, ...]] = Counter()
        registry.read(self._read)

    def of(self, network: str) -> NetworkMetrics:
        """Return what is counted of one network."""
        if network not in self._networks:
            self._networks[network] = NetworkMetrics(self, network)
        return self._networks[network]

    def counted(self, prober: Prober, network: str, *, of_nodes: bool) -> Prober:
        """Return ``prober``, and its answers are counted. ``of_nodes``: it asks guests' kube-proxies."""
        return _CountedProber(prober, self._probes, label(network), of_nodes=of_nodes)

    def took(self, other: Literal["living", "dead"]) -> None:
        """A load balancer's addresses were taken from another host."""
        self._takeovers[other].inc()

    def _read(self) -> Readings:
        yield metrics.PROBES, self._probes


class _CountedProber:
    """A :class:`~cloudprovider.probe.api.Prober`."""

    def __init__(self, prober: Prober, counts: Counter[tuple[str, ...]], network: str, *, of_nodes: bool) -> None:
        self._prober = prober
        self._counts = counts
        self._network = network
        self._of_nodes = of_nodes

    async def begin(self, target: Target, timeout: float, done: Callable[[Answer], None]) -> None:
        """See Prober."""
        kind = "node" if self._of_nodes else _kind(target.question)

        def counted(answer: Answer) -> None:
            self._counts[self._network, kind, _RESULTS.get(answer.outcome, "failed")] += 1
            done(answer)

        await self._prober.begin(target, timeout, counted)

    def close(self) -> None:
        """See Prober."""
        self._prober.close()


_RESULTS = {Outcome.GOOD: "passed", Outcome.UNASKED: "unasked"}


def _kind(question: Question) -> str:
    match question:
        case HttpGet(tls=tls):
            return "http" if tls is None else "https"
        case GrpcHealth(tls=tls):
            return "grpc" if tls is None else "grpcs"
        case _:
            return "tcp"


def label(network: str) -> str:
    """What a network is called in metrics."""
    return network or metrics.MANAGEMENT
