"""What each program exports is just what is defined, with those types and labels, and Prometheus finds no fault."""

import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from cloudprovider.bridge.api import Hello
from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.server import Console
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.metrics.catalogue import PROGRAMS
from cloudprovider.guest.metrics import BridgeCalls
from cloudprovider.host.clock import utc_now
from cloudprovider.host.config import HostConfig
from cloudprovider.host.metrics import AdmissionMetrics
from cloudprovider.host.program import HostProgram
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS
from tests.agent import world as agents
from tests.console.users import FakeUser
from tests.guest.test_program import Copies, end
from tests.guest.world import World as GuestWorld
from tests.host import world as hosts
from tests.kube.exposed import parsed
from tests.lab.promtool import promtool

TENANT = Tenant("team-a", "blue")


@asynccontextmanager
async def guest() -> AsyncIterator[Registry]:
    world = GuestWorld()
    copies = Copies(world)
    _, task = copies.start("first")
    await world.create()
    await world.until_ready()
    registry = copies.registries["first"]
    RequestCounter(registry).count("get", "pods", 200, 0.1)
    calls = BridgeCalls(registry)
    calls.called("Connect", "OK", 0.1)
    calls.certified(utc_now())
    yield registry
    await end(task)


@asynccontextmanager
async def host() -> AsyncIterator[Registry]:
    cluster = FakeCluster(utc_now)
    client = FakeKubeClient(cluster)
    world = hosts.World(client=client, connect=lambda: FakeKubeClient(cluster, program="host"))
    await client.create(IPPOOLS, hosts.pool("p", hosts.subnet("10.0.0.0/24")))
    await client.create(GUESTCLUSTERS, hosts.guest_cluster(TENANT))
    registry = Registry("host", "1")
    config = HostConfig(**{name: f"/{name}" for name in ("tls_cert", "tls_key", "tenant_ca")})  # type: ignore[arg-type]
    program = HostProgram(config, client, rng=random.Random(1), registry=registry)
    admission = AdmissionMetrics(registry)
    admission.took("ippools", 0.1)
    admission.follow({("ippools", "refused"): 1})
    admission.certified(utc_now())
    RequestCounter(registry).count("get", "pods", 200, 0.1)
    metrics = program._metrics
    async with world.host(metrics=metrics) as running, world.agent(running):
        program._host = running
        await running.backend.connect(TENANT, Hello(cluster_uid="uid", guest_version="1"))
        metrics.bridge.streams({TENANT: 1})
        metrics.bridge.shown(TENANT, utc_now())
        metrics.bridge.served(TENANT, "Connect", "OK", 0.1)
        metrics.bridge.certified(utc_now())
        yield registry


@asynccontextmanager
async def agent() -> AsyncIterator[Registry]:
    world = agents.World()
    made = world.agent()
    RequestCounter(made.registry).count("get", "pods", 200, 0.1)
    async with agents.running(made):
        await world.serve_by_dhcp()
        yield made.registry


@asynccontextmanager
async def console() -> AsyncIterator[Registry]:
    cluster = FakeCluster(utc_now)
    registry = Registry("console", "1")
    RequestCounter(registry).count("get", "pods", 200, 0.1)
    Console(
        ConsoleConfig(),
        lambda token: FakeUser(cluster, token),
        now=utc_now,
        time=lambda: 0.0,
        rng=random.Random(1),
        registry=registry,
    )
    yield registry


RUNNING: dict[str, Callable[[], AbstractAsyncContextManager[Registry]]] = {
    "guest": guest,
    "host": host,
    "agent": agent,
    "console": console,
}


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_exports_what_is_defined(program: str) -> None:
    async with RUNNING[program]() as registry:
        text = (await registry.text()).decode()
    defined = {metric.name: metric for metric in PROGRAMS[program]}
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    assert types == {name: metric.kind for name, metric in defined.items()}
    helps = dict(re.findall(r"^# HELP (\w+) (.*)$", text, re.MULTILINE))
    assert helps == {name: metric.help for name, metric in defined.items()}
    without_series = set(defined)
    for name, labels in parsed(text):
        family = name if name in defined else re.sub(r"_(bucket|sum|count)$", "", name)
        without_series.discard(family)
        assert {label for label, _ in labels} - {"le"} == set(defined[family].labels), name
    assert without_series <= {
        "cloudprovider_agent_dhcp_dropped_total",
        "cloudprovider_agent_host_up",
        "cloudprovider_agent_probes_total",
        "cloudprovider_console_requests_total",
        "cloudprovider_console_request_duration_seconds",
        "cloudprovider_host_load_balancers",
        "cloudprovider_guest_bridge_calls_total",
        *(f"cloudprovider_agent_{of}_{what}_total" for of in ("node",) for what in ("packets", "bytes", "connections")),
    }
    assert not promtool("check", "metrics", stdin=text.encode()).strip()


def test_definitions_are_sound() -> None:
    for program, metrics in PROGRAMS.items():
        names = [metric.name for metric in metrics]
        assert len(set(names)) == len(names)
        for metric in metrics:
            assert metric.name.startswith(("cloudprovider_", "process_")), program
            assert metric.name.endswith("_total") == (metric.kind == "counter")
            assert metric.help.endswith(".")
            assert bool(metric.buckets) == (metric.kind == "histogram")
