"""Checks of a load balancer's own on the kernel: how soon who fails is out, and what becomes of its flows."""

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from ipaddress import IPv4Address
from typing import Literal
from unittest.mock import patch

import pytest

from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.program import Agent
from cloudprovider.core.api.loadbalancer import HealthCheck, Listener
from cloudprovider.core.exchange import Mode
from cloudprovider.core.plan import Changes
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.resources import LOADBALANCERS
from cloudprovider.probe.prober import SocketProber
from tests.agent.test_real_kernel import MODES, SECONDS, Host, answered, client, host, stations
from tests.agent.world import running, until, unwatched
from tests.core.test_forwarding import HTTP, lb
from tests.dataplane.dsr import connections, serving
from tests.dataplane.lan import CONFIG, Station

__all__ = ["client", "host", "stations"]  # fixtures

pytestmark = pytest.mark.kernel

VIP = IPv4Address("10.99.0.101")
PORT = 8080
"""Where backends are checked: beside what is served, so that flows can go on while the check fails."""
DNS = Listener(name="dns", port=53, protocol="UDP", backend_port=30053)
WITHIN = 0.05
"""Seconds from a verdict to the kernel."""


def checking(host: Host, dataplane: HostDataPlane) -> Agent:
    """An agent that really asks."""
    return Agent(
        AgentConfig(node_name="h1", instance="test", networks=(CONFIG,)),
        FakeKubeClient(host.world.cluster, program="h1"),
        dataplane,
        random.Random(1),
        connect=host.world.connect,
        make_prober=lambda segment, _network: SocketProber(segment.packets),
        make_watch=unwatched,
    )


class Checked:
    """Nodes that serve, each with a port by which it is checked that can be closed and opened."""

    def __init__(self, nodes: list[Station]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._open: dict[str, AsyncExitStack] = {}

    async def open(self, name: str) -> None:
        stack = self._open[name] = AsyncExitStack()
        await stack.enter_async_context(self._nodes[name].serving_tcp(PORT))

    async def close(self, name: str) -> None:
        await self._open.pop(name).aclose()

    async def close_all(self) -> None:
        for name in list(self._open):
            await self.close(name)


@pytest.fixture
async def checked(host: Host) -> AsyncIterator[Checked]:
    made = Checked(host.nodes)
    for node in host.nodes:
        node.accept(VIP)
        await made.open(node.name)
    yield made
    await made.close_all()


def seed(host: Host, mode: Mode, failed: Literal["Keep", "Reset"] = "Keep") -> None:
    check = HealthCheck(port=PORT, period_seconds=1, timeout_seconds=1, failure_threshold=2, failed_connections=failed)
    host.world.cluster.seed(LOADBALANCERS, lb("a", str(VIP), HTTP, DNS, mode=mode, health_check=check))


def goes_to(client: Station, *names: str) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        try:
            return {await client.ask_tcp(VIP, HTTP.port) for _ in range(30)} == set(names)
        except OSError:  # refused, or not there yet
            return False

    return ask


@MODES
@pytest.mark.parametrize("failed", ["Keep", "Reset"])
async def test_who_fails_gets_nothing_new_and_its_connections_stay_or_are_reset(
    host: Host, client: Station, checked: Checked, mode: Mode, failed: Literal["Keep", "Reset"]
) -> None:
    async with serving(host.nodes), running(checking(host, host._dataplane)):
        seed(host, mode, failed)
        await until(lambda: host.world.says("Ready", "Ready"), SECONDS)
        await until(goes_to(client, "n1", "n2", "n3"), SECONDS)
        async with connections(client, 20, VIP) as flows:
            left = [flow for flow in flows if flow.node == "n1"]
            others = [flow for flow in flows if flow.node != "n1"]
            assert left
            assert others
            await checked.close("n1")
            if failed == "Keep":
                await until(goes_to(client, "n2", "n3"), SECONDS)
                assert all([await flow.alive() for flow in flows])
            else:
                ended: set[int] = set()

                async def over() -> bool:
                    assert all([await flow.alive() for flow in others])
                    for flow in left:
                        if flow.source not in ended and not await flow.alive():
                            ended.add(flow.source)
                    return len(ended) == len(left)

                await until(over, SECONDS)
                await until(goes_to(client, "n2", "n3"), SECONDS)
            await checked.open("n1")
            await until(goes_to(client, "n1", "n2", "n3"), SECONDS)
            assert all([await flow.alive() for flow in others])


@MODES
async def test_where_all_fail_it_is_refused(host: Host, client: Station, checked: Checked, mode: Mode) -> None:
    async with serving(host.nodes), running(checking(host, host._dataplane)):
        seed(host, mode)
        await until(lambda: host.world.says("Ready", "Ready"), SECONDS)
        await checked.close_all()

        async def refused() -> bool:
            try:
                await client.ask_tcp(VIP, HTTP.port)
            except ConnectionRefusedError:
                return True
            return False

        await until(refused, SECONDS)
        await until(lambda: host.world.says("Ready", "NoHealthyBackends"), SECONDS)
        await until(lambda: host.world.says_in("Ready", "n1: Connection refused."), SECONDS)
        await checked.open("n2")
        await until(partial(answered, client, VIP), SECONDS)


@MODES
async def test_datagrams_of_a_flow_to_who_fails_go_to_another_at_once(
    host: Host, client: Station, checked: Checked, mode: Mode
) -> None:
    async with serving(host.nodes), AsyncExitStack() as stack:
        for node in host.nodes:
            await stack.enter_async_context(node.serving_udp(DNS.port, VIP))
        async with running(checking(host, host._dataplane)):
            seed(host, mode)
            await until(goes_to(client, "n1", "n2", "n3"), SECONDS)
            before = {source: await client.ask_udp(VIP, DNS.port, source=source) for source in range(40000, 40020)}
            mine = next(source for source, name in before.items() if name == "n1")
            await checked.close("n1")

            async def elsewhere() -> bool:
                try:
                    return await client.ask_udp(VIP, DNS.port, source=mine, limit=0.5) != "n1"
                except TimeoutError:  # one that is under way while the flow is forgotten is lost
                    return False

            await until(elsewhere, SECONDS)


async def test_a_verdict_is_in_the_kernel_within_50_ms(
    host: Host, client: Station, checked: Checked, caplog: pytest.LogCaptureFixture
) -> None:
    """The best of several: the machine has other things to do as well."""
    applied: list[float] = []
    real = NftablesEngine.apply

    async def watched(self: NftablesEngine, changes: Changes) -> None:
        await real(self, changes)
        applied.append(time.time())

    with patch.object(NftablesEngine, "apply", watched), caplog.at_level(logging.WARNING):
        async with serving(host.nodes), running(checking(host, host._dataplane)):
            seed(host, "nat")
            await until(goes_to(client, "n1", "n2", "n3"), SECONDS)
            for name in ("n1", "n2", "n1", "n2"):
                others = {"n1", "n2", "n3"} - {name}
                await checked.close(name)
                await until(goes_to(client, *others), SECONDS)
                await checked.open(name)
                await until(goes_to(client, "n1", "n2", "n3"), SECONDS)
    verdicts = [record.created for record in caplog.records if record.message == "backend is down"]
    took = [min(moment for moment in applied if moment > verdict) - verdict for verdict in verdicts]
    assert len(took) == 4
    print("seconds from a verdict to the kernel:", *(f"{each:.4f}" for each in took))
    assert min(took) < WITHIN, took
