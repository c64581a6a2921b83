"""What an agent does for load balancers that are followed: kernel commits, announcements, reports, each a span."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from cloudprovider.core.api.loadbalancer import LoadBalancer, LoadBalancerStatus
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.tracing import (
    ADDRESSES,
    NETWORK,
    REASON,
    LoadBalancerTrails,
    Span,
    Tracer,
)
from cloudprovider.core.wanted import LoadBalancerKey


class AgentTraces:
    """The spans of one agent."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._trails = LoadBalancerTrails(tracer)

    def changed(self, old: LoadBalancer | None, new: LoadBalancer | None, *, listed: bool) -> None:
        """See LoadBalancerTrails."""
        self._trails.changed(old, new, listed=listed)

    def now(self) -> int:
        """The clock of spans."""
        return self._tracer.now()

    @contextmanager
    def commits(self, network: str, keys: Iterable[LoadBalancerKey]) -> Iterator[None]:
        """The kernel is brought up to what these ask for, in one transaction."""
        if not self._trails:
            yield
            return
        with ExitStack() as stack:
            for key in keys:
                stack.enter_context(self._trails.follow(key, "kernel commit", attributes={NETWORK: _named(network)}))
            yield

    def announced(self, keys: Iterable[LoadBalancerKey], network: str, vip: IPAddress, *, since: int, why: str) -> None:
        """An address was probed, brought up and announced; or was not, and ``why``."""
        if not self._trails:
            return
        said = {NETWORK: _named(network), ADDRESSES: str(vip)}
        for key in keys:
            with self._trails.follow(key, "announce", since=since, attributes=said) as span:
                if why:
                    span.fail(why)

    def withdrawn(self, keys: Iterable[LoadBalancerKey], network: str, vip: IPAddress, *, since: int) -> None:
        """An address was taken off the link."""
        if not self._trails:
            return
        said = {NETWORK: _named(network), ADDRESSES: str(vip)}
        for key in keys:
            with self._trails.follow(key, "withdraw", since=since, attributes=said):
                pass

    def reports(self, lb: LoadBalancer, said: LoadBalancerStatus) -> AbstractContextManager[Span]:
        """The status is written."""
        if not self._trails:
            return self._trails.nothing()
        up = said.holder.addresses if said.holder is not None else ()
        why = next((c.reason for c in said.conditions if c.status == "False"), "")
        return self._trails.follow(lb.key, "agent reports", attributes={ADDRESSES: " ".join(up), REASON: why})


def _named(network: str) -> str:
    return network or "management"
