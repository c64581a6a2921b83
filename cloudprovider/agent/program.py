"""The agent as a process: wiring, readiness, SIGTERM, and leaving a host for good."""

import asyncio
import contextlib
import logging
import os
import random
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address

from cloudprovider import __version__
from cloudprovider.agent.attachments import AttachedDataPlane
from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.controller import AgentController, give_up
from cloudprovider.agent.fellows import MakeWatch
from cloudprovider.agent.leases import Connect
from cloudprovider.agent.membership import Membership, Timing
from cloudprovider.agent.metrics import AgentMetrics
from cloudprovider.agent.nodehealth import MakeProber
from cloudprovider.agent.routing import MakeSpeaker, give_up_routing
from cloudprovider.core.metrics.agent import SERVING
from cloudprovider.core.naming import AGENT_PROGRAM
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.dataplane.api import DataPlane, NetworkConfig, Segment
from cloudprovider.dataplane.ruleset import load_library
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.dhcp.api import DhcpClient
from cloudprovider.dhcp.client import SocketDhcpClient
from cloudprovider.dhcp.link import open_socket
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import load
from cloudprovider.kube.endpoint import Probes, serve
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.metrics import RequestCounter, reading_events
from cloudprovider.kube.registry import Readings, Registry, Series
from cloudprovider.liveness.api import PeerWatch
from cloudprovider.liveness.bfd import BfdWatch
from cloudprovider.probe.api import Prober
from cloudprovider.probe.prober import SocketProber
from cloudprovider.routing.api import Speaker
from cloudprovider.routing.bgpd import BgpSpeaker
from cloudprovider.tracing.setup import traced

log = logging.getLogger(__name__)

COMPONENT = AGENT_PROGRAM


def _utc() -> datetime:
    return datetime.now(UTC)


class Agent:
    """One agent: serves once it has its host's Lease, and for as long as no other agent of that name has it."""

    def __init__(
        self,
        config: AgentConfig,
        client: KubeClient,
        dataplane: DataPlane,
        rng: random.Random,
        *,
        connect: Connect,
        make_prober: MakeProber,
        make_watch: MakeWatch,
        make_speaker: MakeSpeaker | None = None,
        registry: Registry | None = None,
        now: Callable[[], datetime] = _utc,
        timing: Timing | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """``connect``, ``make_prober``, ``make_speaker``, ``now``: see
        :class:`~cloudprovider.agent.controller.AgentController`. ``registry``: what exports metrics; without
        one nobody sees them."""
        self._config = config
        self._client = client
        self._dataplane = dataplane
        self._rng = rng
        self._connect = connect
        self._make_prober = make_prober
        self._make_watch = make_watch
        self._make_speaker = make_speaker
        self._now = now
        self._tracer = tracer
        self._events = EventRecorder(client, component=COMPONENT, instance=config.node_name, now=now, rng=rng)
        self._hosts = Membership(
            client,
            config.namespace,
            config.instance,
            config.node_name,
            rng=rng,
            now=now,
            monotonic=time.monotonic,
            timing=timing,
        )
        self._controller: AgentController | None = None
        self._mine = asyncio.Event()
        self._changed = asyncio.Event()
        self._heard = False
        self.registry = registry or Registry("agent", __version__)
        self._metrics = AgentMetrics(self.registry)
        self.registry.read(self._read)
        self.registry.read(reading_events(lambda: self._events))

    @property
    def not_ready(self) -> Sequence[str]:
        """Why not."""
        if self._controller is not None:
            return self._controller.not_ready
        if not self._heard:
            return ("the API server has not been heard yet",)
        return (f"another agent says that it is host {self._config.node_name}: give this one a name of its own",)

    async def _read(self) -> Readings:
        controller = self._controller
        serving: Series = {(): controller is not None}
        return ((SERVING, serving), *(await controller.read() if controller is not None else ()))

    async def run(self) -> None:
        """Work until cancelled. Rules and addresses stay in the kernel for the next agent."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hosts.run(self._on_contact))
            group.create_task(self._serve())
            group.create_task(self._events.run())

    async def leave(self) -> None:
        """Remove everything of this instance from the host, and let others have its load balancers."""
        networks = await self._dataplane.networks()
        for network in networks:
            await self._dataplane.remove(network)
        count = await give_up(self._client, self._config.node_name)
        await give_up_routing(self._client, self._config.node_name)
        await self._hosts.release()
        log.info(
            "Nothing of this agent is left on this host.",
            extra={
                "node": self._config.node_name,
                "instance": self._config.instance,
                "networks_removed": [network or "management" for network in networks],
                "load_balancers_given_up": count,
            },
        )

    def _on_contact(self, serving: bool) -> None:  # noqa: FBT001
        self._heard = True
        if serving != self._mine.is_set():
            (self._mine.set if serving else self._mine.clear)()
            self._changed.set()

    async def _serve(self) -> None:
        """Serve while the Lease is ours. A fault ends the process: a new one adopts what the kernel does meanwhile."""
        while True:
            await self._mine.wait()
            self._changed.clear()
            config = self._config
            self._controller = AgentController(
                config.node_name,
                config.networks,
                self._client,
                self._dataplane,
                self._events,
                hosts=self._hosts,
                connect=self._connect,
                make_prober=self._make_prober,
                make_watch=self._make_watch,
                make_speaker=self._make_speaker,
                namespace=config.namespace,
                rng=self._rng,
                metrics=self._metrics,
                now=self._now,
                tracer=self._tracer,
            )
            serving = asyncio.create_task(self._controller.run())
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({serving, changed}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
            finally:
                self._controller = None
                serving.cancel()
                changed.cancel()
                await asyncio.gather(serving, changed, return_exceptions=True)
            # Another agent announces the addresses from its host now: two must not.
            for network in await self._dataplane.networks():
                await self._dataplane.remove(network)


@contextlib.asynccontextmanager
async def connect(
    segment: Segment, network: str, probe: Callable[[IPv4Address], Awaitable[str]], *, rng: random.Random
) -> AsyncIterator[DhcpClient]:
    """The DHCP client of a segment's link, on a socket of its own. Raises DataPlaneError."""
    with await segment.packets(open_socket) as packets:
        name = network or "management"
        yield SocketDhcpClient(packets, mac=segment.mac, network=name, probe=probe, now=_utc, rng=rng)


def _prober(segment: Segment, network: str) -> Prober:
    return SocketProber(segment.packets, network=network)


def _watch(segment: Segment, config: NetworkConfig) -> PeerWatch:
    own = [interface.ip for interface in (config.address, config.address6) if interface is not None]
    return BfdWatch(config.name, own, segment.packets)


def _speaker(segment: Segment, config: NetworkConfig) -> Speaker:
    return BgpSpeaker(config.name, segment.packets)


async def run(config: AgentConfig) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises ConfigurationError for settings that can't work."""
    # Thousands of probes may be under way at once; what is given by default may be 1,024 files, for the sake of select.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load_library()  # without it nothing can be served: better said now than at the first network
    await _with_agent(config, _serve)


async def leave(config: AgentConfig) -> None:
    """Remove what this agent's instance has on the host, and only that. Raises KubeError, DataPlaneError."""
    await _with_agent(config, lambda agent, _: agent.leave())


async def _serve(agent: Agent, config: AgentConfig) -> None:
    task = asyncio.create_task(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)

    async with serve(config.endpoint, Probes(ready=lambda: agent.not_ready, metrics=agent.registry.text)):
        with contextlib.suppress(asyncio.CancelledError):
            await task
    log.info("stopped", extra={"node": config.node_name})


async def _with_agent(config: AgentConfig, work: Callable[[Agent, AgentConfig], Awaitable[None]]) -> None:
    rng = random.Random()  # noqa: S311 - jitter, no secret
    credentials = load(config.kubeconfig or None, config.context or None)
    registry = Registry("agent", __version__)
    requests = RequestCounter(registry)
    async with (
        traced(AGENT_PROGRAM, __version__, os.environ, rng=rng) as tracer,
        HttpKubeClient(credentials, program="agent", version=__version__, rng=rng, requests=requests) as client,
    ):
        # Who guesses DHCP's transaction ids can answer for a server.
        guarded = partial(connect, rng=random.SystemRandom())
        dataplane = AttachedDataPlane(HostDataPlane(config.instance), client)
        agent = Agent(
            config,
            client,
            dataplane,
            rng,
            connect=guarded,
            make_prober=_prober,
            make_watch=_watch,
            make_speaker=_speaker,
            registry=registry,
            tracer=tracer,
        )
        await work(agent, config)
