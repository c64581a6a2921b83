"""What stands in the memory of the copy of the guest program that leads, read for each scrape."""

from collections import Counter
from collections.abc import Callable

from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.conditions import find
from cloudprovider.core.conditiontypes import SERVICE_READY
from cloudprovider.core.metrics import guest as metrics
from cloudprovider.core.metrics.definition import MOST_REASONS
from cloudprovider.guest.leading import Leadership
from cloudprovider.guest.servicestatus import PENDING
from cloudprovider.kube.metrics import read_queues
from cloudprovider.kube.registry import Names, Readings


def reading(leadership: Callable[[], Leadership | None]) -> Callable[[], Readings]:
    """Return a reader of ``leadership``, None while this copy stands by."""
    reasons = Names(MOST_REASONS)

    def read() -> Readings:
        leads = leadership()
        yield metrics.LEADER, {(): leads is not None}
        if leads is None:
            return
        yield metrics.BRIDGE_CONNECTED, {(): leads.host.connected}
        yield metrics.LOAD_BALANCERS, {(): len(leads.host)}
        services = (leads.services.get(*name) for name in leads.controller.known())
        states = Counter(_state(service) for service in services if service is not None)
        counted: Counter[tuple[str, ...]] = Counter()
        for (state, reason), number in states.items():
            counted[state, reasons.of(reason)] += number
        yield metrics.SERVICES, counted
        yield from read_queues([leads.queue])

    return read


def _state(service: Service) -> tuple[str, str]:
    condition = find(service.status.conditions, SERVICE_READY)
    if condition is None:
        return "pending", PENDING
    return "ready" if condition.status == "True" else "pending", condition.reason
