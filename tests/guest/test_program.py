"""Copies of the program and the Lease; kopf as the shell; the whole process against a real API server."""

import asyncio
import getpass
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from cloudprovider.bridge.api import BridgeClient, Hello
from cloudprovider.bridge.local import LocalBridge
from cloudprovider.core.api.kubernetes import Namespace
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.guest.config import GuestConfig
from cloudprovider.guest.program import GuestProgram, run
from cloudprovider.kube.credentials import Credentials
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import LEASES, NAMESPACES
from cloudprovider.kube.shell import run_in_shell
from tests.guest.world import TENANT, World, in_virtual_time, pass_time


def config(identity: str = "") -> GuestConfig:
    nowhere = Path("/nowhere")
    return GuestConfig(
        bridge="192.0.2.1:8443", bridge_ca=nowhere, client_cert=nowhere, client_key=nowhere, identity=identity
    )


class Copies:
    """Copies of the program in one guest cluster."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hellos: list[Hello] = []
        self.registries: dict[str, Registry] = {}
        world.cluster.seed(NAMESPACES, Namespace(metadata=ObjectMeta(name="kube-system", uid="the-uid")))

    def bridge(self, hello: Hello) -> BridgeClient:
        self.hellos.append(hello)
        return LocalBridge(self.world.backend, TENANT, hello)

    def start(self, identity: str) -> tuple[GuestProgram, "asyncio.Task[None]"]:
        client = FakeKubeClient(self.world.cluster, program=identity)
        registry = self.registries[identity] = Registry("guest", "0")
        program = GuestProgram(config(identity), client, self.bridge, rng=random.Random(identity), registry=registry)
        return program, asyncio.create_task(program.run())


async def end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_virtual_time
async def test_one_copy_leads_and_the_next_takes_over_at_once_when_it_ends() -> None:
    world = World()
    copies = Copies(world)
    first, task = copies.start("first")
    await world.create()
    assert await world.until_ready() == ["192.0.2.1"]
    second, other = copies.start("second")
    await pass_time(60)
    assert len(copies.hellos) == 1
    assert copies.hellos[0].cluster_uid == "the-uid"
    assert b"cloudprovider_guest_leader 1.0\n" in await copies.registries["first"].text()
    assert b"cloudprovider_guest_leader 0.0\n" in await copies.registries["second"].text()
    assert not first.not_ready
    assert not second.not_ready
    await end(task)
    await world.create("after")
    await world.until_ready("after")
    assert len(copies.hellos) == 2
    lease = await world.user.get(LEASES, "cloudprovider-system", "cloudprovider-guest")
    assert lease.spec.holder_identity.startswith("second_")
    assert lease.spec.lease_transitions == 2
    await end(other)


@in_virtual_time
async def test_it_says_why_it_is_not_ready() -> None:
    world = World()
    copies = Copies(world)
    world.backend.set_tenant(TENANT, None)
    program, task = copies.start("first")
    await pass_time(5)
    assert list(program.not_ready) == ["the host is not reached: there is no GuestCluster tenants/blue"]
    await end(task)


@in_virtual_time
async def test_metrics_count_the_addresses() -> None:
    world = World()
    copies = Copies(world)
    _, task = copies.start("first")
    await world.create()
    await world.until_ready()
    lines = (await copies.registries["first"].text()).decode().splitlines()
    assert 'cloudprovider_guest_time_to_address_seconds_bucket{le="+Inf"} 1.0' in lines
    assert "cloudprovider_guest_time_to_address_seconds_count 1.0" in lines
    assert "cloudprovider_guest_bridge_connected 1.0" in lines
    assert "cloudprovider_guest_load_balancers 1.0" in lines
    assert 'cloudprovider_guest_services{reason="AddressAssigned",state="ready"} 1.0' in lines
    await end(task)


@pytest.fixture
async def deaf_api_server() -> AsyncIterator[Credentials]:
    """An API server that refuses every connection."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield Credentials(server=f"http://127.0.0.1:{port}", ssl=None, authorization=lambda: "")
    server.close()


@pytest.fixture
async def api_server() -> AsyncIterator[Credentials]:
    """An API server that answers what kopf asks of it, once it is told who asks."""

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer secret":
            return web.json_response({"code": 401}, status=401)
        return web.json_response({"versions": [], "groups": []})

    app = web.Application()
    app.router.add_get("/api", answer)
    app.router.add_get("/apis", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    yield Credentials(server=f"http://{host}:{port}", ssl=None, authorization=lambda: "Bearer secret")
    await runner.cleanup()


async def test_the_shell_runs_work_though_the_api_server_is_away_and_ends_it_on_sigterm(
    deaf_api_server: Credentials,
) -> None:
    began = asyncio.Event()
    ended = asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    shell = asyncio.create_task(run_in_shell(deaf_api_server, work, program="test"))
    async with asyncio.timeout(20):
        await began.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await shell
    assert ended.is_set()


async def test_the_shell_ends_when_the_work_fails_and_says_why(api_server: Credentials) -> None:
    async def work() -> None:
        raise ConfigurationError("the port is taken")

    with pytest.raises(ConfigurationError, match="the port is taken"):
        async with asyncio.timeout(20):
            await run_in_shell(api_server, work, program="test")


async def test_the_shell_runs_for_a_user_without_a_name(
    api_server: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, where runAsUser is a number that no file knows."""

    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr(getpass, "getuser", no_name)
    began = asyncio.Event()

    async def work() -> None:
        began.set()

    async with asyncio.timeout(20):
        await run_in_shell(api_server, work, program="test")
    assert began.is_set()


async def test_the_shell_cancelled_ends_the_work(api_server: Credentials) -> None:
    began = asyncio.Event()
    ended = asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    shell = asyncio.create_task(run_in_shell(api_server, work, program="test"))
    async with asyncio.timeout(20):
        await began.wait()
        shell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await shell
    assert ended.is_set()


async def test_missing_certificate_files_are_told_at_the_start(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
    )
    with pytest.raises(ConfigurationError, match="nowhere"):
        await run(
            GuestConfig(
                bridge="192.0.2.1:8443",
                bridge_ca=Path("/nowhere/ca"),
                client_cert=Path("/nowhere/cert"),
                client_key=Path("/nowhere/key"),
                kubeconfig=str(kubeconfig),
            )
        )
