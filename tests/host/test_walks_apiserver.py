"""The walks of test_walks.py on a real API server, under the rights and policies that the host is installed with."""

import asyncio
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from typing_extensions import override

from cloudprovider.core.errors import NotFound
from cloudprovider.kube import credentials
from cloudprovider.kube.api import Resource
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.conftest import DEFINITIONS, LOGS
from tests.host.walks.machine import Walks
from tests.host.walks.scene import NAMESPACE
from tests.host.world import LIMIT, World
from tests.lab import programs
from tests.lab.controlplane import ControlPlane, Settings

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(300)]

LOOK_SECONDS = 0.1
"""How often it is looked whether all is at rest."""
STEPS = 150
"""At least so many steps are taken."""


class OnApiServer(Walks):
    plane: ClassVar[ControlPlane]

    @override
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    @override
    async def open(self) -> World:
        self.clients: list[HttpKubeClient] = []
        account = programs.account(self.plane, "host")
        admin = self._client(self.plane.kubeconfig, "test")
        return World(client=admin, connect=lambda: self._client(account, "host"))

    def _client(self, kubeconfig: Path, program: str) -> HttpKubeClient:
        found = credentials.from_kubeconfig(str(kubeconfig))
        client = HttpKubeClient(found, program=program, version="0", rng=random.Random(len(self.clients)))
        self.clients.append(client)
        return client

    @override
    async def rest(self, holds: Callable[[], Coroutine[Any, Any, list[str]]]) -> list[str]:
        """Nothing is left to do for anybody, and all holds; what does not in time is wrong."""
        found = ["it does not come to rest"]
        with suppress(TimeoutError):
            async with asyncio.timeout(LIMIT):
                while found:
                    await self._idle()
                    found = await holds()
                    if found:
                        await asyncio.sleep(LOOK_SECONDS)
        return found

    async def _idle(self) -> None:
        for host, _ in self.hosts:
            await host.controller.load_balancers.queue.idle()
        if self.agent is not None:
            await self.agent[0].queue.idle()

    @override
    async def close(self) -> None:
        client = self.world.client
        for lb in await self.world.load_balancers():
            await client.merge_patch(LOADBALANCERS, *lb.key, {"metadata": {"finalizers": None}})
            with suppress(NotFound):
                await client.delete(LOADBALANCERS, *lb.key)
        resources: tuple[Resource[Any], ...] = (IPBLOCKS, IPPOOLS, GUESTCLUSTERS)
        for resource in resources:
            for obj in (await client.list(resource)).items:
                await client.delete(resource, *obj.key)
        for one in self.clients:
            await one.close()


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with tempfile.TemporaryDirectory(prefix="walks-plane-") as folder:
        plane = ControlPlane(Path(folder), LOGS / "tests", Settings(name="walks"))
        with plane:
            plane.apply_definitions(DEFINITIONS)
            programs.install(plane, "host")
            programs.wait_permitted(plane, ("host",))
            plane.kubectl("create", "namespace", NAMESPACE)
            yield plane


def test_any_walk(plane: ControlPlane) -> None:
    OnApiServer.plane = plane
    OnApiServer.taken.clear()
    walks = settings(
        max_examples=3,
        stateful_step_count=50,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(20260402)(OnApiServer), settings=walks)
    print(dict(OnApiServer.taken))
    assert sum(OnApiServer.taken.values()) >= STEPS, OnApiServer.taken
