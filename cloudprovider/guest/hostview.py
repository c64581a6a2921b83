"""What the host says, as the guest last heard it: the stream of states, kept in memory."""

import logging
from collections.abc import Callable

from cloudprovider.bridge.api import BridgeClient, BridgeEvent, Connected, Disconnected, StateChange
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import LoadBalancerState, ServiceKey

log = logging.getLogger(__name__)

Name = tuple[str, str]
"""A Service's (namespace, name)."""


class HostView:
    """The states of this tenant's load balancers, and whether the host is heard.

    ``connected``: the stream stands. ``synced``: since the stream began (or resumed) all states are known.
    ``session`` counts streams that did not resume: what was settled with the host in an earlier one is in doubt.
    ``error``: why the stream does not stand.
    """

    def __init__(self, bridge: BridgeClient) -> None:
        self.connected = False
        self.synced = False
        self.session = 0
        self.error: BridgeError | None = None
        self._bridge = bridge
        self._states: dict[ServiceKey, LoadBalancerState] = {}
        self._by_name: dict[Name, set[ServiceKey]] = {}
        self._unseen: set[ServiceKey] = set()
        self._on_state: list[Callable[[ServiceKey, LoadBalancerState | None], None]] = []
        self._on_connected: list[Callable[[], None]] = []
        self._on_synced: list[Callable[[], None]] = []

    def state(self, service: ServiceKey) -> LoadBalancerState | None:
        """Return the last state of a Service."""
        return self._states.get(service)

    def named(self, name: Name) -> tuple[ServiceKey, ...]:
        """Return the Services of this name (by UID) that the host has a load balancer for."""
        return tuple(self._by_name.get(name, ()))

    def has_addresses(self, name: Name) -> bool:
        """Whether the host has given an address to a Service of this name."""
        return any(self._states[key].addresses for key in self._by_name.get(name, ()))

    def __len__(self) -> int:
        return len(self._states)

    def on_state(self, listener: Callable[[ServiceKey, LoadBalancerState | None], None]) -> None:
        """Call ``listener`` for every state that changes; None: the load balancer is gone, its address given back."""
        self._on_state.append(listener)

    def on_connected(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever the stream stands (again)."""
        self._on_connected.append(listener)

    def on_synced(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever all states are known (again), after ``on_state`` of those that went."""
        self._on_synced.append(listener)

    def learn(self, state: LoadBalancerState) -> None:
        """Take the answer of a call: only what the stream has not told better already."""
        if state.service not in self._states:
            self._put(state)

    async def run(self) -> None:
        """Follow the stream until cancelled."""
        try:
            async for event in self._bridge.watch():
                self._take(event)
        finally:
            self.connected = self.synced = False

    def _take(self, event: BridgeEvent) -> None:
        if isinstance(event, Disconnected):
            if self.connected or str(event.error) != str(self.error):
                log.warning(
                    "The host is not reached; trying again.",
                    extra={"error": str(event.error), "reason": event.error.reason, "retry_in": event.retry_in},
                )
            self.connected = self.synced = False
            self.error = event.error
        elif isinstance(event, Connected):
            log.info(
                "The host is reached.",
                extra={"tenant": event.welcome.tenant.path, "host": event.welcome.host_version},
            )
            self.connected, self.error = True, None
            self.synced = event.resumed
            if not event.resumed:
                self.session += 1
                self._unseen = set(self._states)
            for listener in self._on_connected:
                listener()
            if event.resumed:
                self._tell_synced()
        else:
            self._change(event)

    def _change(self, change: StateChange) -> None:
        for state in change.updated:
            self._unseen.discard(state.service)
            if self._states.get(state.service) != state:
                self._put(state)
                self._tell(state.service, state)
        gone = list(change.removed)
        if change.synced:
            gone += sorted(self._unseen - set(gone))
        for key in gone:
            self._unseen.discard(key)
            self._drop(key)
            self._tell(key, None)
        if change.synced:
            self.synced = True
            self._tell_synced()

    def _put(self, state: LoadBalancerState) -> None:
        key = state.service
        self._states[key] = state
        self._by_name.setdefault((key.namespace, key.name), set()).add(key)

    def _drop(self, key: ServiceKey) -> None:
        self._states.pop(key, None)
        name = (key.namespace, key.name)
        keys = self._by_name.get(name, set())
        keys.discard(key)
        if not keys:
            self._by_name.pop(name, None)

    def _tell(self, key: ServiceKey, state: LoadBalancerState | None) -> None:
        for listener in self._on_state:
            listener(key, state)

    def _tell_synced(self) -> None:
        for listener in self._on_synced:
            listener()
