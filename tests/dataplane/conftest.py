import os
from collections.abc import AsyncIterator, Iterator

import pytest

from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.api import Segment
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import CONFIG, Station, bridge, run, station, until
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


@pytest.fixture
async def both_families(client: Station, nodes: list[Station]) -> None:
    """Client and nodes have an IPv6 address, too, with its route: there is none before the link has carrier."""
    for host, suffix in (*zip(nodes, (11, 12, 13), strict=True), (client, 50)):
        run(f"ip -n {host.name} address add fd99::{suffix}/64 dev eth0 nodad")
        await until(lambda host=host: "linkdown" not in _route6(host), "carrier")  # type: ignore[misc]


def _route6(host: Station) -> str:
    return run(f"ip -n {host.name} -6 route show fd99::/64") or "linkdown"


@pytest.fixture
async def dataplane(lan: None) -> AsyncIterator[HostDataPlane]:
    """The kernel's, with short waits; nothing of it is left."""
    made = HostDataPlane("test", timing=Timing(between=0.005, listen=0.02))
    yield made
    await made.close()
    for network in await made.networks():
        await made.remove(network)


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
