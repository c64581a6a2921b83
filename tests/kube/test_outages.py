"""A real API server that is killed, frozen, compacted: the informer has the truth again afterwards."""

import asyncio
import base64
import json
import os
import random
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime

import pytest

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import Gone, Unavailable
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.lease import Elector, Timing
from cloudprovider.kube.resources import LEASES
from tests.kube.conftest import open_client
from tests.lab.controlplane import ControlPlane, Settings

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, since these tests break it."""
    folder = tmp_path_factory.mktemp("outages")
    with ControlPlane(folder / "data", folder / "logs", Settings(name="outages")) as plane:
        yield plane


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[HttpKubeClient]:
    async with open_client(plane.kubeconfig, deadline=2.0, silence_limit=2.0) as client:
        yield client


@pytest.fixture
def namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> str:
    name: str = request.node.name.replace("_", "-")[:63].rstrip("-")
    plane.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def lease(namespace: str, name: str, holder: str = "a") -> Lease:
    return Lease(metadata=ObjectMeta(name=name, namespace=namespace), spec=LeaseSpec(holder_identity=holder))


def informer_of(client: HttpKubeClient, namespace: str) -> Informer[Lease]:
    return Informer(client, LEASES, namespace=namespace, rng=random.Random(1), backoff=Backoff(base=0.1, limit=0.5))


@asynccontextmanager
async def running(informer: Informer[Lease]) -> AsyncIterator[None]:
    task = asyncio.create_task(informer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def eventually(informer: Informer[Lease], condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds, looking at it after every change."""
    changed = asyncio.Event()
    informer.on_change(lambda _, __: changed.set())
    async with asyncio.timeout(30):
        while not condition():
            changed.clear()
            await changed.wait()


@contextmanager
def frozen(plane: ControlPlane) -> Iterator[None]:
    """The API server accepts connections (the kernel does) and answers nothing."""
    pid = plane.processes["kube-apiserver"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def etcd(plane: ControlPlane, method: str, body: dict[str, object]) -> dict[str, object]:
    """Call etcd's JSON gateway: to change what the API server serves behind its back."""
    request = urllib.request.Request(  # noqa: S310 - our own etcd, by http
        f"{plane._etcd}/v3/kv/{method}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        answer: dict[str, object] = json.load(response)
    return answer


def delete_in_etcd(plane: ControlPlane, namespace: str, name: str) -> None:
    key = base64.b64encode(f"/registry/leases/{namespace}/{name}".encode()).decode()
    assert etcd(plane, "deleterange", {"key": key})["deleted"] == "1"


# The API server is started in the main thread, blocking the loop: it dies with the thread that started it.


async def test_deletions_while_the_api_server_was_dead(
    plane: ControlPlane, client: HttpKubeClient, namespace: str
) -> None:
    for name in ("a", "b", "c"):
        await client.create(LEASES, lease(namespace, name))
    informer = informer_of(client, namespace)
    deleted: list[str] = []
    informer.on_change(lambda old, new: deleted.append(old.metadata.name) if old and new is None else None)
    async with running(informer):
        await asyncio.wait_for(informer.synced.wait(), 10)
        assert len(informer.objects) == 3
        plane.kill_component("kube-apiserver")
        delete_in_etcd(plane, namespace, "a")
        delete_in_etcd(plane, namespace, "c")
        with pytest.raises(Unavailable):
            await client.get(LEASES, namespace, "b")
        assert len(informer.objects) == 3
        plane.start_component("kube-apiserver")
        await eventually(informer, lambda: len(informer.objects) == 1)
        assert sorted(deleted) == ["a", "c"]
        await client.create(LEASES, lease(namespace, "d"))
        await eventually(informer, lambda: len(informer.objects) == 2)


async def test_a_watch_from_compacted_history_is_gone(
    plane: ControlPlane, client: HttpKubeClient, namespace: str
) -> None:
    old = await client.create(LEASES, lease(namespace, "a"))
    new = await client.create(LEASES, lease(namespace, "b"))
    body = {"revision": new.metadata.resource_version, "physical": True}
    etcd(plane, "compaction", body)
    plane.kill_component("kube-apiserver")  # its watch cache forgets too
    plane.start_component("kube-apiserver")
    version = str(int(old.metadata.resource_version) - 1)
    with pytest.raises(Gone):
        async with asyncio.timeout(10), aclosing(client.watch(LEASES, namespace, resource_version=version)) as events:
            await anext(events)


async def test_a_frozen_api_server(plane: ControlPlane, client: HttpKubeClient, namespace: str) -> None:
    informer = informer_of(client, namespace)
    async with running(informer):
        await asyncio.wait_for(informer.synced.wait(), 10)
        with frozen(plane):
            began = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable, match="no answer"):
                await client.get(LEASES, namespace, "a")
            assert asyncio.get_running_loop().time() - began < 4
        await client.create(LEASES, lease(namespace, "a"))
        await eventually(informer, lambda: len(informer.objects) == 1)


async def test_a_frozen_api_server_ends_leadership(plane: ControlPlane, client: HttpKubeClient, namespace: str) -> None:
    elector = Elector(
        client,
        namespace=namespace,
        name="leader",
        identity="a",
        now=lambda: datetime.now(UTC),
        rng=random.Random(1),
        timing=Timing(lease_duration=4, renew_deadline=2.0, retry_period=0.5, request_timeout=0.4),
    )
    leading, stopped = asyncio.Event(), asyncio.Event()
    tokens: list[int] = []

    async def work(token: int) -> None:
        tokens.append(token)
        leading.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            leading.clear()
            stopped.set()

    task = asyncio.create_task(elector.run_while_leader(work))
    try:
        await asyncio.wait_for(leading.wait(), 10)
        with frozen(plane):
            await asyncio.wait_for(stopped.wait(), 3.5)
        await asyncio.wait_for(leading.wait(), 20)
        assert tokens == [1, 2]
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert (await client.get(LEASES, namespace, "leader")).spec.holder_identity == ""
