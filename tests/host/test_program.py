"""The host program as a process, over a real API server under its own account."""

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

import aiohttp
import pytest

from cloudprovider.bridge.api import Hello
from cloudprovider.bridge.client import ClientConfig, GrpcBridge
from cloudprovider.bridge.tlsfiles import TlsPaths
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey
from tests.conftest import DEFINITIONS, LOGS, ROOT
from tests.lab import netns, programs
from tests.lab.controlplane import ControlPlane, Settings

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120)]

LIMIT = 40.0
SERVICE = ServiceKey("default", "web", "uid-1")
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="host-program-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def plane(folder: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(folder / "plane", LOGS / "tests", Settings(name="host-program"))
    with plane:
        plane.apply_definitions(DEFINITIONS)
        programs.install(plane, "host")
        programs.wait_permitted(plane, ("host",))
        programs.issue_tenant(
            folder, plane, "blue", namespace="team-a", bridge="127.0.0.1:8443", node_cidrs=[IPv4Network("10.0.0.0/8")]
        )
        programs.issue_bridge_certificate(folder, "127.0.0.1")
        yield plane


@asynccontextmanager
async def running(
    plane: ControlPlane, folder: Path, bridge: int, endpoint: int, *, path: str = "readyz", name: str = "host"
) -> AsyncIterator[asyncio.subprocess.Process]:
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "cloudprovider.cli.main",
                "host",
                f"--kubeconfig={programs.account(plane, 'host')}",
            ),
            *(f"--bridge-address=127.0.0.1:{bridge}", f"--endpoint=127.0.0.1:{endpoint}", "--log-format=json"),
            *(f"--tls-cert={folder / 'bridge.crt'}", f"--tls-key={folder / 'bridge.key'}"),
            *(f"--tenant-ca={folder / 'ca.crt'}",),
            stdout=output,
            stderr=output,
            cwd=ROOT,
        )
    try:
        await answers(f"http://127.0.0.1:{endpoint}/{path}", process, log)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answers(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(LIMIT), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None, log.read_text()  # noqa: ASYNC240 - the test ends here
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)


async def gone(plane: ControlPlane, what: str) -> None:
    async with asyncio.timeout(LIMIT):
        while await asyncio.to_thread(  # noqa: ASYNC110 - kubectl asks anew
            plane.kubectl, "get", what, "-A", "-o", "name"
        ):
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_standby_serves_within_two_seconds(plane: ControlPlane, folder: Path, end: signal.Signals) -> None:
    """Of the leader's end: it gives its Lease back, or is seen to be dead."""
    loop = asyncio.get_running_loop()
    ports = [netns.free_port("", "127.0.0.1") for _ in range(4)]
    log = folder / "standby.log"
    async with (
        running(plane, folder, ports[0], ports[1], name="leader") as leader,
        running(plane, folder, ports[2], ports[3], path="livez", name="standby") as standby,
    ):
        await follows(f"http://127.0.0.1:{ports[3]}/metrics", "leases")
        leader.send_signal(end)
        began = loop.time()
        await answers(f"http://127.0.0.1:{ports[3]}/readyz", standby, log)
        seconds = loop.time() - began
    assert seconds < 2, f"{seconds:.2f} s\n{log.read_text()}"


async def follows(url: str, resource: str) -> None:
    """Wait until a program watches a kind, which it does when it has listed it."""
    async with asyncio.timeout(LIMIT), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as response:
                if f'resource="{resource}",verb="watch"' in await response.text():
                    return
            await asyncio.sleep(0.05)


async def test_it_serves_guests_and_ends_a_tenant_when_its_object_is_deleted(plane: ControlPlane, folder: Path) -> None:
    bridge, endpoint = netns.free_port("", "127.0.0.1"), netns.free_port("", "127.0.0.1")
    async with running(plane, folder, bridge, endpoint) as process:
        client = GrpcBridge(
            ClientConfig(
                target=f"127.0.0.1:{bridge}",
                tls=TlsPaths(certificate=folder / "blue.crt", key=folder / "blue.key", ca=folder / "ca.crt"),
                hello=Hello(cluster_uid="kube-system-1", guest_version="1"),
            )
        )
        try:
            state = await client.ensure(SERVICE, REQUEST)
            assert state.host_object.startswith("team-a/blue-default-web-")
        finally:
            await client.close()
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{endpoint}/metrics") as response:
            text = await response.text()
        assert 'cloudprovider_kube_requests_total{code="201",resource="loadbalancers",verb="create"} 1.0' in text
        assert 'cloudprovider_host_load_balancers{reason="Pending",state="no_address"} 1.0' in text
        patch = '{"spec":{"deletionGracePeriodSeconds":0}}'
        plane.kubectl("-n", "team-a", "patch", "guestcluster", "blue", "--type=merge", "-p", patch)
        plane.kubectl("-n", "team-a", "delete", "guestcluster", "blue", "--wait=false")
        await gone(plane, "guestclusters")
        await gone(plane, "loadbalancers")
        process.terminate()
        async with asyncio.timeout(LIMIT):
            assert await process.wait() == 0, (folder / "host.log").read_text()
    assert (
        plane.kubectl(
            "-n", "cloudprovider-system", "get", "lease", "cloudprovider-host", "-o", "jsonpath={.spec.holderIdentity}"
        )
        == ""
    )
