"""What a load balancer sends to, as its status shows it: which of its backends take traffic, and why none does.

The host controller writes what a machine is, the agent what its checks say; this reads both.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from cloudprovider.core.api.loadbalancer import Backend, BackendHealth, LoadBalancer
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import condition, find
from cloudprovider.core.reasons import Heard
from cloudprovider.core.wanted import Problem

BACKENDS_FOUND: Final = "BackendsFound"
"""The controller's condition on a load balancer for machines: whether there is one to send to, health aside."""

NO_BACKENDS: Final = "NoBackends"
NO_HEALTHY_BACKENDS: Final = "NoHealthyBackends"

_NAMED: Final = 3
"""So many backends are named in a message; the status has all of them."""


@dataclass(frozen=True)
class Chosen:
    """The controller's part of a status, as to the machines: without what the agent says of their health."""

    backends: tuple[Backend, ...]
    condition: Condition

    @property
    def addresses(self) -> list[str]:
        """The addresses that are sent to: ``status.backendServers``."""
        return [address for backend in usable(self.backends) for address in backend.addresses]


def shown(lb: LoadBalancer) -> tuple[Backend, ...]:
    """Return the controller's part of the backends that stand in the status, by name: the API server merges the list
    in an order of its own."""
    own = (structs.replace(b, health=None) for b in lb.status.backends if b.addresses or b.reason)
    return tuple(sorted(own, key=lambda b: b.name))


def kept(lb: LoadBalancer) -> Chosen:
    """Return what stands in the status, while it is not known which machines there are."""
    message = "The virtual machines of this cluster can't be listed yet; the host program's log says why."
    unknown = condition(BACKENDS_FOUND, "Unknown", "MachinesUnknown", message)
    return Chosen(shown(lb), find(lb.status.conditions, BACKENDS_FOUND) or unknown)


def usable(backends: Iterable[Backend]) -> list[Backend]:
    """Return the machines that traffic may go to, if they are healthy. An entry without address and reason is one that
    the controller has dropped, and the agent not yet."""
    return [b for b in backends if b.addresses and not b.reason]


def why_none(lb: LoadBalancer) -> Problem | None:
    """Return why no backend of a load balancer takes traffic; None where one does, as far as its status shows.

    A guest cluster's nodes are judged here by their load balancer's own check alone: whether there are any, and what
    the node probes say of them, its GuestCluster shows.
    """
    if lb.spec.workload_type == "cluster":
        return why_none_is_healthy(lb, lb.status.backends)
    said = find(lb.status.conditions, BACKENDS_FOUND)
    if said is not None and said.status != "True":
        return Problem(Heard(said.reason), said.message)
    return why_none_is_usable(lb, lb.status.backends) or why_none_is_healthy(lb, usable(lb.status.backends))


def why_none_is_usable(lb: LoadBalancer, backends: Iterable[Backend]) -> Problem | None:
    """Return why there is no machine to send to, healthy or not; None where there is one."""
    backends = list(backends)
    if usable(backends):
        return None
    out = [b for b in backends if b.reason]
    if out:
        reason = Counter(b.reason for b in out).most_common(1)[0][0]
        out.sort(key=lambda b: (b.reason != reason, b.name))
        said = listed(f"{b.name}: {b.message}" for b in out)
        return Problem(
            Heard(reason), f"None of the virtual machines that match takes traffic, connections are refused. {said}"
        )
    if not selects(lb.spec.backend_server_selector):
        message = (
            "No virtual machines are chosen, connections are refused. Name a label and its values in"
            " spec.backendServerSelector."
        )
        return Problem(NO_BACKENDS, message)
    message = (
        f'No virtual machine that runs in the namespace "{lb.metadata.namespace}" matches the selector'
        f" ({selector_text(lb.spec.backend_server_selector)}), connections are refused. Start one, or correct"
        " spec.backendServerSelector or the machines' labels (a VirtualMachine's spec.template.metadata.labels; they"
        " count from its next start)."
    )
    return Problem(NO_BACKENDS, message)


def is_checked(lb: LoadBalancer) -> bool:
    """Whether a load balancer has a check of its own."""
    return lb.spec.health_check is not None and lb.spec.health_check.port is not None


def passes(lb: LoadBalancer, health: BackendHealth | None) -> bool:
    """Whether a backend of which this is said is sent to, as far as checks go: without one all are, with one those
    alone that have passed it. Who is new has not."""
    return not is_checked(lb) or (health is not None and health.healthy)


def takes_traffic(lb: LoadBalancer, backend: Backend) -> bool:
    """Whether a virtual machine is sent to."""
    return bool(usable([backend])) and passes(lb, backend.health)


def why_none_is_healthy(lb: LoadBalancer, backends: Sequence[Backend]) -> Problem | None:
    """Return what the checks say where none of the backends passes; None where one does, or nothing is checked."""
    check = lb.spec.health_check
    if check is None or not backends or any(passes(lb, b.health) for b in backends):
        return None
    said = listed(f"{b.name}: {b.health.message or 'failed'}." for b in backends if b.health is not None)
    message = f"No backend passes the {check.protocol} check of port {check.port}, connections are refused."
    return Problem(NO_HEALTHY_BACKENDS, f"{message} {said or 'None has been checked yet.'}")


def selects(selector: Mapping[str, Sequence[str]]) -> bool:
    """Whether a selector can match anything: an empty one matches nothing, nor does a key without values."""
    return bool(selector) and all(selector.values())


def selector_text(selector: Mapping[str, Sequence[str]]) -> str:
    """Return a selector for people: "app=web, tier=front or back"."""
    return ", ".join(f"{key}={' or '.join(values)}" for key, values in sorted(selector.items()))


def listed(texts: Iterable[str], joint: str = " ") -> str:
    """Return the first few sentences (or names), and how many more there are."""
    every = list(texts)
    more = len(every) - _NAMED
    return joint.join(every[:_NAMED]) + (f" ({more} more)" if more > 0 else "")
