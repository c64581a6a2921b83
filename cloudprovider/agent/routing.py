"""BGP: what this host says to routers, of the objects and of what its kernel does, and back into their status.

A host says an address when its kernel has the rules of its load balancer, whichever host has it on its link: all hosts
forward the same, and by the same Maglev table, so routers may send to all of them at once. One that takes no load
balancers any more (cordoned, excluded, of weight 0) says that it is about to go (RFC 8326), and a few seconds later
nothing.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

import msgspec

from cloudprovider.agent.fellows import Fellows
from cloudprovider.agent.forwarder import NetworkForwarder
from cloudprovider.agent.metrics import label
from cloudprovider.agent.passwords import Passwords
from cloudprovider.core.api.bgp import BGPAdvertisement, BGPAnnouncer, BGPPeer, BGPSession
from cloudprovider.core.api.kubernetes import Node
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.bgp import Speech
from cloudprovider.core.bgpsessions import Session
from cloudprovider.core.bgpwish import Host, Objects, Served, Standing, Wish, wish
from cloudprovider.core.errors import NotFound
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.metrics import agent as metrics
from cloudprovider.core.naming import label_value
from cloudprovider.core.standing import weight_of
from cloudprovider.core.times import rfc3339
from cloudprovider.core.wanted import LoadBalancerKey
from cloudprovider.dataplane.api import NetworkConfig, Segment
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.registry import Readings
from cloudprovider.kube.resources import BGPADVERTISEMENTS, BGPPEERS, IPPOOLS, NODES
from cloudprovider.liveness.api import Rhythm
from cloudprovider.routing.api import Speaker

log = logging.getLogger(__name__)

MakeSpeaker = Callable[[Segment, NetworkConfig], Speaker]
"""Makes what speaks BGP on a network."""

GATHER: Final = 0.25
"""Seconds for which changes are gathered after one was taken: many addresses may come at once."""
LOOK_AGAIN: Final = 1.0
"""Seconds until a network whose kernel is not in line yet is looked at again."""
LEAVE_AFTER: Final = 5.0
"""Seconds that routers have to find other ways to what a host that is cordoned says."""
SECRET_WITHIN: Final = 30.0
"""Seconds in which the passwords must be read first; until then what an engine says that was found, goes on."""
TOLD_AFTER, COUNTED_AFTER, FLAPPING_AFTER = 0.2, 5.0, 30.0
"""Seconds after which the status says that a state is another one, that only a number is, and anything more of a
session that comes and goes. Every host's agent hears of each write."""
WORKERS: Final = 4

Kind = Literal["peer", "advertisement"]
T = TypeVar("T", BGPPeer, BGPAdvertisement)


class Routing:
    """``make_speaker`` None: no BGP is spoken. ``namespace``: of the Secret with the passwords."""

    def __init__(
        self,
        node: str,
        namespace: str,
        configs: Mapping[str, NetworkConfig],
        client: KubeClient,
        *,
        make_speaker: MakeSpeaker | None,
        table: ForwardingTable,
        forwarders: Mapping[str, NetworkForwarder],
        fellows: Mapping[str, Fellows],
        get: Callable[[LoadBalancerKey], LoadBalancer | None],
        now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self._node = node
        self._configs = configs
        self._client = client
        self._make_speaker = make_speaker
        self._table = table
        self._forwarders = forwarders
        self._fellows = fellows
        self._get = get
        self._now = now
        self._peers: Informer[BGPPeer] = Informer(client, BGPPEERS, rng=rng, optional=True)
        self._advertisements: Informer[BGPAdvertisement] = Informer(client, BGPADVERTISEMENTS, rng=rng, optional=True)
        self._pools: Informer[IPPool] = Informer(client, IPPOOLS, rng=rng)
        self._nodes: Informer[Node] = Informer(client, NODES, rng=rng, field_selector=f"metadata.name={node}")
        self._speakers: dict[str, Speaker] = {}
        self._speeches: dict[str, Speech | None] = {}
        self._in_line: set[str] = set()
        self._served: dict[LoadBalancerKey, tuple[Served, ...]] = {}
        self._passwords = Passwords(client, namespace)
        self._patience = 0.0
        self._wish = Wish()
        self._told: dict[str, tuple[str, str]] = {}
        """The state and the error of each peer that the log has told."""
        self._leaving: float | None = None
        self._poked = asyncio.Event()
        self._reports: WorkQueue[tuple[Kind, str]] = WorkQueue(
            self._report, name="bgp-status", workers=WORKERS, rng=rng
        )

    # What others tell.

    def touch(self, key: LoadBalancerKey) -> None:
        """A load balancer, or what the kernel does for it, is another than before."""
        served = self._serves(key)
        if served == self._served.get(key, ()):
            return
        if served:
            self._served[key] = served
        else:
            del self._served[key]
        self._poked.set()

    async def speak(self, config: NetworkConfig, segment: Segment) -> None:
        """Speak on a network's segment until cancelled."""
        if self._make_speaker is None:
            await asyncio.Event().wait()
            return
        speaker = self._speakers[config.name] = self._make_speaker(segment, config)
        speaker.on_change(lambda: self._heard(config.name))
        if config.name in self._speeches:
            speaker.speak(self._speeches[config.name])
        self._poked.set()
        try:
            await speaker.run()
        finally:
            del self._speakers[config.name]

    async def run(self) -> None:
        """Work until cancelled."""
        if self._make_speaker is None:
            return
        informers = (self._peers, self._advertisements, self._pools, self._nodes)
        async with asyncio.TaskGroup() as group:
            for informer in informers:
                informer.on_change(lambda _old, _new: self._poked.set())
                group.create_task(informer.run())
            group.create_task(self._reports.run())
            group.create_task(self._passwords.watch(self._has_passwords, self._poked.set))
            for informer in informers:
                await informer.synced.wait()
            self._patience = asyncio.get_running_loop().time() + SECRET_WITHIN
            while True:
                self._poked.clear()
                wait = await self._decide()
                await asyncio.sleep(GATHER)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._poked.wait()

    def read(self) -> Readings:
        """Tell of sessions, for metrics."""
        sessions = {
            (label(network), name): speaker.sessions.get(name)
            for network, speaker in self._speakers.items()
            for name in self._names(network)
        }
        refused = {(label(self._network(name)), name): None for name in self._wish.refused}
        up: dict[tuple[str, ...], float] = {
            where: s is not None and s.state == "Established" for where, s in (refused | sessions).items()
        }
        yield metrics.BGP_SESSION_UP, up
        yield metrics.BGP_ADVERTISED, {where: s.advertised if s is not None else 0 for where, s in sessions.items()}
        yield metrics.BGP_DROPS, {where: s.drops if s is not None else 0 for where, s in sessions.items()}

    # What is to be said.

    def _serves(self, key: LoadBalancerKey) -> tuple[Served, ...]:
        lb = self._get(key)
        if lb is None or self._table.is_looking(key):
            return ()
        pools = {a.ip: a.ip_pool for a in (*lb.status.addresses, *lb.status.next_addresses)}
        return tuple(
            Served(place.network, place.vip, pools.get(str(place.vip), ""))
            for place in sorted(self._table.places(key), key=str)
            if place.network in self._forwarders and self._forwarders[place.network].generation(key)
        )

    async def _decide(self) -> float | None:
        """Say what is to be said now; return after how many seconds it is to be looked at again."""
        peers = tuple(self._peers.objects.values())
        if self._passwords.known is None and self._has_passwords():
            read = await self._passwords.read()
            if not read and asyncio.get_running_loop().time() < self._patience:
                return LOOK_AGAIN
        objects = Objects(
            peers=peers,
            advertisements=tuple(self._advertisements.objects.values()),
            pools={pool.metadata.name: pool.metadata.labels for pool in self._pools.objects.values()},
            passwords=self._passwords.known or {},
        )
        node = self._nodes.get("", self._node)
        host = Host(labels=node.metadata.labels if node is not None else {}, networks=self._standing())
        served = {address for those in self._served.values() for address in those}
        before, self._wish = self._wish, wish(host, objects, served)
        graceful, silent, wait = self._departure(node)
        for network, forwarder in self._forwarders.items():
            if forwarder.in_line:
                self._in_line.add(network)
            if network not in self._in_line:
                wait = LOOK_AGAIN  # until then, what an engine says that was found, goes on
                continue
            speech = self._wish.speeches.get(network)
            if speech is not None and (graceful or silent):
                speech = replace(speech, graceful=True, routes={} if silent else speech.routes)
            self._say(network, speech)
        self._tell(before)
        return wait

    def _say(self, network: str, speech: Speech | None) -> None:
        self._speeches[network] = speech
        watched = {n.name: n for n in speech.neighbors if n.watch is not None} if speech is not None else {}
        self._fellows[network].follow_routers(
            {name: n.address for name, n in watched.items()},
            {name: Rhythm(n.watch.interval, n.watch.multiplier) for name, n in watched.items() if n.watch is not None},
            self._fell_silent,
        )
        if network in self._speakers:
            self._speakers[network].speak(speech)

    def _fell_silent(self, network: str, name: str) -> None:
        if network in self._speakers:
            self._speakers[network].lost(name)

    def _departure(self, node: Node | None) -> tuple[bool, bool, float | None]:
        """Whether this host is about to go, whether it has, and the seconds until then."""
        if weight_of(node).value:
            self._leaving = None
            return False, False, None
        now = asyncio.get_running_loop().time()
        if self._leaving is None:
            says = any(speech is not None and speech.routes for speech in self._speeches.values())
            self._leaving = now + (LEAVE_AFTER if says else 0.0)
            if says:
                log.info("routers are told that this host is about to go", extra={"seconds": LEAVE_AFTER})
        left = self._leaving - now
        return True, left <= 0, left if left > 0 else None

    def _standing(self) -> dict[str, Standing]:
        found = {}
        for name, config in self._configs.items():
            own = [i for i in (config.address, config.address6) if i is not None]
            found[name] = Standing(addresses={i.version: i.ip for i in own}, subnets=tuple(i.network for i in own))
        return found

    def _has_passwords(self) -> bool:
        return any(peer.spec.password_key for peer in self._peers.objects.values())

    # Back into the status.

    def _heard(self, network: str) -> None:
        for name in self._names(network):
            entry = self._session(name)
            known = self._own(self._peers.get("", name))
            if entry != known:
                self._reports.add_after(("peer", name), _delay(entry, known))
            self._log(network, name, entry)

    def _log(self, network: str, name: str, entry: BGPSession | None) -> None:
        told = (entry.state, entry.error) if entry is not None else ("", "")
        before = self._told.get(name, ("", ""))
        if entry is None or told[0] == before[0]:
            return
        self._told[name] = told
        where = {"peer": name, "network": label(network), "state": entry.state}
        if entry.state == "Established":
            log.info("BGP session is up", extra=where)
        elif before[0]:
            log.warning("BGP session is not up", extra={**where, "error": entry.error})

    def _tell(self, before: Wish) -> None:
        """Have the status of all that has changed, and of what nobody has told of yet, written."""
        for name in before.refused.keys() | self._wish.refused.keys() | {p.metadata.name for p in self._all_peers()}:
            known = self._own(self._peers.get("", name))
            if (entry := self._session(name)) != known:
                self._reports.add_after(("peer", name), _delay(entry, known))
        for name, one in ((a.metadata.name, a) for a in self._advertisements.objects.values()):
            told = next((h for h in one.status.hosts if h.node == self._node), None)
            if (outcome := self._outcome(name)) != told:
                same = outcome is not None and told is not None and outcome.problem == told.problem
                self._reports.add_after(("advertisement", name), COUNTED_AFTER if same else TOLD_AFTER)

    async def _report(self, what: tuple[Kind, str]) -> None:
        kind, name = what
        if kind == "peer":
            peer = self._peers.get("", name)
            entry = self._session(name)
            if peer is not None and entry != self._own(peer):
                entries = {} if entry is None else {"sessions": [msgspec.to_builtins(entry)]}
                await self._apply(BGPPEERS, peer, self._peers, entries)
            return
        one = self._advertisements.get("", name)
        outcome = self._outcome(name)
        if one is not None and outcome != next((h for h in one.status.hosts if h.node == self._node), None):
            entries = {} if outcome is None else {"hosts": [msgspec.to_builtins(outcome)]}
            await self._apply(BGPADVERTISEMENTS, one, self._advertisements, entries)

    async def _apply(
        self, resource: Resource[T], obj: T, informer: Informer[T], status: Mapping[str, Sequence[object]]
    ) -> None:
        patch = {"metadata": {"uid": obj.metadata.uid}, "status": status}
        with contextlib.suppress(NotFound):  # gone meanwhile
            manager = field_manager(self._node)
            informer.observe(
                await self._client.apply(
                    resource, "", obj.metadata.name, patch, field_manager=manager, subresource="status"
                )
            )

    def _session(self, name: str) -> BGPSession | None:
        """What this host has to say of a peer; None: it has nothing to do with it."""
        if (why := self._wish.refused.get(name)) is not None:
            known = self._own(self._peers.get("", name))
            since = known.since if known is not None and known.state == "Refused" else rfc3339(self._now())
            return BGPSession(node=self._node, state="Refused", since=since, error=why[:1024])
        network = self._network(name)
        if name not in self._names(network):
            return None
        speaker = self._speakers.get(network)
        session = speaker.sessions.get(name) if speaker is not None else None
        if session is None:
            known = self._own(self._peers.get("", name))
            since = known.since if known is not None and known.state == "Connecting" else rfc3339(self._now())
            trouble = speaker.trouble if speaker is not None else "The network is not open on this host (yet)."
            return BGPSession(node=self._node, state="Connecting", since=since, error=trouble[:1024])
        return _entry(self._node, session)

    def _outcome(self, name: str) -> BGPAnnouncer | None:
        found = self._wish.outcomes.get(name)
        if found is None:
            return None
        return BGPAnnouncer(node=self._node, addresses=found.addresses, problem=found.problem[:1024])

    def _own(self, peer: BGPPeer | None) -> BGPSession | None:
        """What this host has said of a peer."""
        return next((s for s in peer.status.sessions if s.node == self._node), None) if peer is not None else None

    def _names(self, network: str) -> list[str]:
        speech = self._wish.speeches.get(network)
        return [neighbor.name for neighbor in speech.neighbors] if speech is not None else []

    def _network(self, name: str) -> str:
        peer = self._peers.get("", name)
        return peer.spec.network if peer is not None else ""

    def _all_peers(self) -> Sequence[BGPPeer]:
        return list(self._peers.objects.values())


def _entry(node: str, session: Session) -> BGPSession:
    return BGPSession(
        node=node,
        state=session.state,
        since=rfc3339(datetime.fromtimestamp(session.since, UTC)),
        advertised=session.advertised,
        error=session.error[:1024],
    )


def _delay(entry: BGPSession | None, known: BGPSession | None) -> float:
    """Seconds after which the status is to say so."""
    if entry is None or known is None or entry.state != known.state:
        return TOLD_AFTER
    if entry.state == "Flapping":
        return FLAPPING_AFTER
    return COUNTED_AFTER if entry.error == known.error else TOLD_AFTER


def field_manager(node: str) -> str:
    """By which a host's entries are its own."""
    return f"cloudprovider-agent-{label_value(node)}"


async def give_up_routing(client: KubeClient, node: str) -> None:
    """Take this host's entries away. For ``agent leave``."""
    with contextlib.suppress(NotFound):  # an API server without these kinds
        for peer in (await client.list(BGPPEERS)).items:
            if any(s.node == node for s in peer.status.sessions):
                await _clear(client, BGPPEERS, peer.metadata.name, node)
        for one in (await client.list(BGPADVERTISEMENTS)).items:
            if any(h.node == node for h in one.status.hosts):
                await _clear(client, BGPADVERTISEMENTS, one.metadata.name, node)


async def _clear(client: KubeClient, resource: Resource[T], name: str, node: str) -> None:
    await client.apply(resource, "", name, {"status": {}}, field_manager=field_manager(node), subresource="status")


__all__ = ["MakeSpeaker", "Routing", "field_manager", "give_up_routing"]
