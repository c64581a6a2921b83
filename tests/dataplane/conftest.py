import os
from collections.abc import AsyncIterator, Iterator

import pytest

from cloudprovider.dataplane.api import Segment
from tests.dataplane.lan import CONFIG, Station, bridge, station
from tests.dataplane.world import World, fake_world, kernel_world
from tests.lab.sandbox import ENVIRONMENT_MARK


@pytest.fixture
def lan() -> Iterator[None]:
    """A bridge in the sandbox's own network namespace, which stands for the host."""
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        pytest.skip("makes links and rules: run it by tests/lab/sandbox pytest ...")
    with bridge():
        yield


@pytest.fixture
def client(lan: None) -> Iterator[Station]:
    with station("client", "10.99.0.50") as made:
        yield made


@pytest.fixture
def nodes(lan: None) -> Iterator[list[Station]]:
    with station("n1", "10.99.0.11") as one, station("n2", "10.99.0.12") as two, station("n3", "10.99.0.13") as three:
        yield [one, two, three]


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Every data plane there is, one after the other."""
    if request.param == "fake":
        yield fake_world()
        return
    request.getfixturevalue("lan")
    made = kernel_world()
    yield made
    for network in await made.dataplane.networks():
        await made.dataplane.remove(network)


@pytest.fixture
async def segment(world: World) -> AsyncIterator[Segment]:
    opened = await world.dataplane.open(CONFIG)
    await opened.engine.start()
    yield opened
    await opened.close()
