import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from cloudprovider.kube import credentials
from cloudprovider.kube.client import HttpKubeClient
from tests.conftest import DEFINITIONS, LOGS
from tests.host.webhook.served import Admin, Served, serving
from tests.lab import netns, programs
from tests.lab.controlplane import ControlPlane, Settings

_numbers = count(1)


@pytest.fixture(scope="package")
def address() -> str:
    """Where the webhook is served."""
    return f"127.0.0.1:{netns.free_port('', '127.0.0.1')}"


@pytest.fixture(scope="package")
def plane(address: str) -> Iterator[ControlPlane]:
    """A control plane of its own, with the host's manifests: pools there belong to these tests."""
    with tempfile.TemporaryDirectory(prefix="webhook-") as folder:
        plane = ControlPlane(Path(folder), LOGS / "tests", Settings(name="webhook"))
        with plane:
            plane.apply_definitions(DEFINITIONS)
            programs.install(plane, "host")
            programs.wait_permitted(plane, ("host",))
            programs.register_webhook(plane, f"https://{address}")
            yield plane


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(plane: ControlPlane) -> AsyncIterator[Admin]:
    async with Admin(plane) as admin:
        yield admin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(plane: ControlPlane) -> AsyncIterator[HttpKubeClient]:
    """An administrator's, typed."""
    account = credentials.from_kubeconfig(str(plane.kubeconfig))
    async with HttpKubeClient(account, program="test", version="0", rng=random.Random(1)) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(plane: ControlPlane, address: str, admin: Admin) -> AsyncIterator[Served]:
    """The webhook, served, registered and trusted, for all tests of a file."""
    async with serving(plane, address) as served:
        await admin.in_force()
        yield served


@pytest.fixture
def network() -> str:
    """A network of the test's own: what other tests have on theirs does not matter."""
    return f"default/network-{next(_numbers)}"
