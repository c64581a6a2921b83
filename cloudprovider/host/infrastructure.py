"""What stands at an address by right of the host: its nodes, pools' gateways, load balancers, its own ranges."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial

from cloudprovider.core.api.kubernetes import Node
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.plan import IPAddress, IPNetwork
from cloudprovider.core.tenancy import HostRules
from cloudprovider.host.book import AddressBook, Room
from cloudprovider.host.caches import Caches, addresses_of, leased_by, readable


class Infrastructure:
    """Follows the caches; ``on_change`` is called with the addresses that may be judged otherwise now."""

    def __init__(self, caches: Caches, book: AddressBook, *, reserved: Sequence[IPNetwork]) -> None:
        self._caches = caches
        self._book = book
        self._reserved = tuple(reserved)
        self._gateways: frozenset[IPAddress] = frozenset()
        self._nodes: frozenset[IPAddress] | None = None
        self._callbacks: list[Callable[[AbstractSet[IPAddress]], None]] = []
        caches.nodes.on_change(self._node_changed)
        caches.blocks.on_change(self._block_changed)
        caches.load_balancers.on_change(self._load_balancer_changed)
        book.on_room(self._room_changed)

    def on_change(self, callback: Callable[[AbstractSet[IPAddress]], None]) -> None:
        """See the class."""
        self._callbacks.append(callback)

    def rules(self, network: str | None = None) -> HostRules:
        """Return what an address is held against. ``network``: just what the pools of one network have; None: all."""
        return HostRules(
            reserved=self._reserved,
            host_addresses=self._host_addresses(),
            gateways=self._book.gateways(network),
            is_load_balancer=partial(self._is_load_balancer, network),
        )

    def _is_load_balancer(self, network: str | None, address: IPAddress) -> bool:
        return self._book.is_allocated(address, network) or self._caches.is_leased(address, network)

    def _host_addresses(self) -> frozenset[IPAddress]:
        if self._nodes is None:
            self._nodes = self._caches.host_addresses()
        return self._nodes

    def _tell(self, addresses: AbstractSet[IPAddress]) -> None:
        if addresses:
            for callback in self._callbacks:
                callback(addresses)

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        before, after = (addresses_of(node) for node in (old, new))
        if before != after:
            self._nodes = None
            self._tell(before ^ after)

    def _room_changed(self, room: Room) -> None:
        if room is Room.POOLS_CHANGED:
            before, self._gateways = self._gateways, self._book.gateways()
            self._tell(before ^ self._gateways)

    def _block_changed(self, old: IPBlock | None, new: IPBlock | None) -> None:
        before = old.spec.allocations.keys() if old is not None else frozenset()
        after = new.spec.allocations.keys() if new is not None else frozenset()
        self._tell(frozenset(readable(before ^ after)))

    def _load_balancer_changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        before, after = (frozenset(() if lb is None else leased_by(lb)) for lb in (old, new))
        self._tell(frozenset(readable(before ^ after)))
