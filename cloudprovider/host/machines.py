"""The virtual machines behind load balancers: which ones, and whom to ask anew when something of them changes."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import Address, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.backends import BACKENDS_FOUND, Chosen, kept
from cloudprovider.core.conditions import condition, find
from cloudprovider.core.machines import choose, matches, side_of
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.reasons import Heard
from cloudprovider.core.tenancy import HostRules, refuse_hosts
from cloudprovider.core.wanted import Problem, is_for_machines
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches, differ, readable
from cloudprovider.host.claimants import ADDRESS_IN_USE, Claimants
from cloudprovider.host.infrastructure import Infrastructure
from cloudprovider.kube.cache import Key

CLAIMED: Final = frozenset({ADDRESS_IN_USE, "HostAddress", "GatewayAddress", "LoadBalancerAddress"})
"""The reasons of a machine that says it has an address of somebody else's."""


class Machines:
    """Follows the caches; ``on_change`` is called with each load balancer that may send to others now."""

    def __init__(self, caches: Caches, book: AddressBook, infrastructure: Infrastructure, claimants: Claimants) -> None:
        self._caches = caches
        self._book = book
        self._infrastructure = infrastructure
        self._claimants = claimants
        self._callbacks: list[Callable[[Key], None]] = []
        caches.machines.on_change(self._machine_changed)
        caches.machines.on_served(self._served)
        caches.guest_clusters.on_change(self._cluster_changed)
        infrastructure.on_change(self._doubt)
        claimants.on_change(self._doubt)

    def on_change(self, callback: Callable[[Key], None]) -> None:
        """See the class."""
        self._callbacks.append(callback)

    def behind(self, lb: LoadBalancer, given: Sequence[Address]) -> Chosen | None:
        """Return what a load balancer sends to, that is to have the addresses ``given``; None: it is not for
        machines."""
        if not is_for_machines(lb):
            return None
        machines = self._caches.machines
        if not machines.synced.is_set():
            return kept(lb)
        if machines.is_missing and not machines.objects:
            return _NOT_INSTALLED
        view = self._book.views().get(lb.spec.ip_pool) if lb.spec.ip_pool else None
        side = side_of(lb, given, None if view is None else view.network)
        judge = partial(self._judge, side.network, self._infrastructure.rules(side.network))
        return choose(lb, self._caches.machines_in(lb.metadata.namespace), side, judge)

    def _judge(self, network: str, rules: HostRules, vmi: VirtualMachineInstance, address: IPAddress) -> Problem | None:
        if (refusal := refuse_hosts(address, rules, "machine")) is not None:
            reason, message = refusal
            return Problem(reason, f"{message}.")
        return self._claimants.refuse(vmi, network, address)

    # --- what makes work -----------------------------------------------------------------------------------------

    def _machine_changed(self, old: VirtualMachineInstance | None, new: VirtualMachineInstance | None) -> None:
        if differ(old, new):
            for vmi in (old, new):
                if vmi is not None:
                    self._tell(vmi)

    def _tell(self, vmi: VirtualMachineInstance) -> None:
        """Those that it is behind look again."""
        for lb in self._caches.selecting_in(vmi.metadata.namespace):
            if matches(lb.spec.backend_server_selector, vmi.metadata.labels):
                self._call(lb.key)

    def _call(self, key: Key) -> None:
        for callback in self._callbacks:
            callback(key)

    def _doubt(self, addresses: AbstractSet[IPAddress]) -> None:
        """Who has these addresses may be judged otherwise now."""
        for address in addresses:
            for vmi in self._caches.machines_at(address):
                self._tell(vmi)

    def _cluster_changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        if old is not None and new is not None and _standing(old) == _standing(new):
            return
        nodes = (node for cluster in (old, new) if cluster is not None for node in cluster.status.nodes)
        self._doubt(frozenset(readable(address for node in nodes for address in node.addresses)))

    def _served(self) -> None:
        for lb in self._caches.load_balancers.objects.values():
            if is_for_machines(lb):
                self._call(lb.key)


_NOT_INSTALLED: Final = Chosen(
    (),
    condition(
        BACKENDS_FOUND,
        "False",
        "KubeVirtNotInstalled",
        "This cluster has no virtual machines (the API server does not know the kind VirtualMachineInstance of"
        " kubevirt.io), connections are refused. Install KubeVirt; it is noticed within a minute.",
    ),
)


def _standing(cluster: GuestCluster) -> tuple[object, ...]:
    """What decides where its nodes stand."""
    return cluster.status.nodes, cluster.spec.networks


def news_of_machines(lb: LoadBalancer, status: LoadBalancerStatus) -> Iterator[tuple[Heard, str]]:
    """Yield what events are to tell, as (reason, message): that there is nothing left to send to, or nothing yet, and
    whose address is somebody else's."""
    said, now = (find(conditions, BACKENDS_FOUND) for conditions in (lb.status.conditions, status.conditions))
    is_new = now is not None and now.status == "False" and (said is None or said.reason != now.reason)
    if now is not None and is_new and now.reason not in CLAIMED:
        yield Heard(now.reason), now.message
    before = {b.name: b.reason for b in lb.status.backends}
    for backend in status.backends:
        if backend.reason in CLAIMED and before.get(backend.name) != backend.reason:
            yield Heard(backend.reason), f"{backend.name}: {backend.message}"
