"""Candidates for a Lease on the fake API server, and what happens to them; all in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from cloudprovider.core.api.kubernetes import Lease
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.lease import Elector, identity_of
from cloudprovider.kube.resources import LEASES
from tests.kube import virtualtime
from tests.kube.conftest import fixed_now


def now() -> float:
    return asyncio.get_running_loop().time()


def wall_clock() -> datetime:
    return datetime.fromtimestamp(now(), UTC)


class Candidate:
    """An elector and the record of its terms: (token, began, ended)."""

    def __init__(self, cluster: FakeCluster, name: str, stop_seconds: float = 0.0, node: str = "") -> None:
        self.name = name
        self.identity = identity_of(name)
        self.terms: list[tuple[int, float, float]] = []
        self.leading = asyncio.Event()
        self.stopped = asyncio.Event()
        self._stop_seconds = stop_seconds
        self.unheard: set[str] = set()
        """The nodes that it holds for dead."""
        self.elector = Elector(
            FakeKubeClient(cluster, program=name),
            namespace="ns",
            name="lease",
            identity=self.identity,
            now=wall_clock,
            rng=random.Random(name),
            node=node,
            is_dead=lambda node: node in self.unheard,
        )

    async def work(self, token: int) -> None:
        began = now()
        assert self.elector.token == token
        self.leading.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(self._stop_seconds)
            self.leading.clear()
            self.stopped.set()
            self.terms.append((token, began, now()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.elector.run_while_leader(self.work))
        try:
            yield task
        finally:
            await stop(task)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def lease_of(cluster: FakeCluster) -> Lease:
    return await FakeKubeClient(cluster).get(LEASES, "ns", "lease")


async def crash(cluster: FakeCluster, candidate: Candidate, running: "asyncio.Task[None]") -> None:
    """The candidate ends, and its Lease stays as if it did not: no word of its end reaches the API server."""
    thaw = freeze(cluster, candidate.name)
    await stop(running)
    thaw()


def freeze(cluster: FakeCluster, *programs: str, answers_only: bool = False) -> Callable[[], None]:
    """Requests of ``programs`` hang (or are carried out, and their answers hang) until the function returned is
    called."""
    thawed = asyncio.Event()

    async def hook(call: Call) -> None:
        if call.program in programs:
            await thawed.wait()

    if answers_only:
        cluster.after = hook
    else:
        cluster.before = hook

    def thaw() -> None:
        cluster.before = cluster.after = None
        thawed.set()

    return thaw


def scenario(main: Callable[[FakeCluster], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        async def body() -> None:
            await main(FakeCluster(fixed_now))

        virtualtime.run(body())

    test.__name__ = getattr(main, "__name__", "test")
    return test
