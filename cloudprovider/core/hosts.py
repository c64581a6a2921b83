"""The hosts of an instance, as their agents' Leases tell: who is there, and how each stands on the networks.

Each agent keeps a Lease of its own. What it says of itself stands in an annotation: on which networks it serves, by
which MAC its addresses are announced there, and where its fellows may ask whether it is alive. ``leaseTransitions``
counts its starts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from cloudprovider.core.api.kubernetes import Lease

INSTANCE_LABEL: Final = "cloudprovider.harvesterhci.io/instance"
"""On an agent's Lease: the instance whose hosts know each other by it."""
STANDING_ANNOTATION: Final = "cloudprovider.harvesterhci.io/standing"
"""On an agent's Lease: how its host stands on each network, as JSON."""
NODE_ANNOTATION: Final = "cloudprovider.harvesterhci.io/node"
"""On an agent's Lease: the host's name."""

LEASE_DURATION: Final = 15
"""Seconds after which an agent that has not renewed its Lease counts as silent."""


class Presence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """How a host stands on one network. ``mac``: of what it announces addresses with; ``addresses``: its own there,
    one a family at most; ``ready``: it has the rules of all load balancers there, and its link is up; ``silent``: the
    other hosts that it has heard there, and hears no more, sorted."""

    mac: str
    addresses: tuple[str, ...] = ()
    ready: bool = False
    silent: tuple[str, ...] = ()


class _Standing(msgspec.Struct, frozen=True, kw_only=True):
    networks: dict[str, Presence]


@dataclass(frozen=True)
class Host:
    """What one agent says of its host. ``token`` grows with every start of it."""

    name: str
    token: int
    networks: Mapping[str, Presence]


def standing_text(networks: Mapping[str, Presence]) -> str:
    """What the annotation of an agent's own Lease says."""
    return msgspec.json.encode(_Standing(networks=dict(sorted(networks.items())))).decode()


def host_of(lease: Lease) -> Host | None:
    """What a Lease says of a host; None where it is no agent's, was given up, or can't be read."""
    name = lease.metadata.annotations.get(NODE_ANNOTATION, "")
    if not name or not lease.spec.holder_identity:
        return None
    try:
        standing = msgspec.json.decode(lease.metadata.annotations.get(STANDING_ANNOTATION, ""), type=_Standing)
    except msgspec.DecodeError:
        return None
    return Host(name, lease.spec.lease_transitions, standing.networks)


@dataclass
class _Seen:
    host: Host
    version: str
    at: float
    since: float


class Roster:
    """Who is there. A Lease's age is counted by our own clock from the last renewal that was seen: those of hosts may
    differ. ``clock``: monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], *, duration: float = LEASE_DURATION) -> None:
        self._clock = clock
        self._duration = duration
        self._seen: dict[str, _Seen] = {}
        self._names: dict[str, str] = {}

    def observe(self, lease: Lease) -> None:
        """Take a Lease as it is now. The same version as before is no sign of life."""
        self._take(lease.metadata.name, host_of(lease), lease.metadata.resource_version)

    def forget(self, lease: Lease) -> None:
        """The Lease was deleted."""
        self._take(lease.metadata.name, None, "")

    @property
    def hosts(self) -> Mapping[str, Host]:
        """All that are there, fresh or silent, by name."""
        return {name: seen.host for name, seen in self._seen.items()}

    def host(self, name: str) -> Host | None:
        """One of them."""
        seen = self._seen.get(name)
        return seen.host if seen is not None else None

    def is_fresh(self, name: str) -> bool:
        """Whether a host is there, and has renewed its Lease in time."""
        seen = self._seen.get(name)
        return seen is not None and self._clock() - seen.at <= self._duration

    def there_for(self, name: str) -> float:
        """Seconds since a host came, or came back after it had been silent; 0 where it is not there."""
        return self._clock() - self._seen[name].since if self.is_fresh(name) else 0.0

    def ready(self, networks: Iterable[str]) -> frozenset[str]:
        """The hosts that said last that they are ready on all of these networks, fresh or silent."""
        wanted = tuple(networks)
        return frozenset(
            name
            for name, seen in self._seen.items()
            if all((there := seen.host.networks.get(n)) is not None and there.ready for n in wanted)
        )

    def is_unheard(self, name: str) -> bool:
        """Whether every host that could hear another one, and there is one at least, says that it does not: those that
        are fresh, and ready on a network that it stands on too."""
        seen = self._seen.get(name)
        if seen is None:
            return False
        said = [
            name in there.silent
            for other, witness in self._seen.items()
            for network, there in witness.host.networks.items()
            if other != name and network in seen.host.networks and there.ready and self.is_fresh(other)
        ]
        return bool(said) and all(said)

    def first_with(self, network: str, mac: str) -> str:
        """The first by name of the fresh hosts that announce addresses with this MAC on a network; "" for none."""
        there = {name: seen.host.networks.get(network) for name, seen in self._seen.items() if self.is_fresh(name)}
        return min((name for name, said in there.items() if said is not None and said.mac == mac), default="")

    def by_mac(self, network: str, mac: str) -> str | None:
        """The host that announces addresses with this MAC on a network."""
        for name, seen in self._seen.items():
            there = seen.host.networks.get(network)
            if there is not None and there.mac == mac:
                return name
        return None

    def _take(self, lease: str, host: Host | None, version: str) -> None:
        before = self._names.get(lease)
        if host is None:
            if before is not None:
                self._seen.pop(before, None)
                del self._names[lease]
            return
        if before is not None and before != host.name:
            self._seen.pop(before, None)
        self._names[lease] = host.name
        seen = self._seen.get(host.name)
        if seen is None or seen.version != version:
            now = self._clock()
            since = seen.since if seen is not None and self.is_fresh(host.name) else now
            self._seen[host.name] = _Seen(host, version, now, since)
