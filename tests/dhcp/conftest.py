import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dhcp.lan import SUBNET, Station, bridge, station
from tests.dhcp.servers import Dnsmasq, Kea, Server
from tests.lab.sandbox import ENVIRONMENT_MARK


@pytest.fixture
def lan() -> Iterator[None]:
    """A LAN in the sandbox's own network namespace."""
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        pytest.skip("makes links and servers: run it by tests/lab/sandbox pytest ...")
    with bridge():
        yield


@pytest.fixture
def link(lan: None) -> Iterator[Station]:
    """The host that the client is on; its own address comes from outside the servers' ranges."""
    with station("host", SUBNET[3]) as made:
        yield made


@pytest.fixture(params=[Dnsmasq, Kea], ids=["dnsmasq", "kea"])
def server(lan: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """One of the servers, not yet started."""
    with station("server", SUBNET[2]) as made:
        server: Server = request.param(made, tmp_path)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def kea(lan: None, tmp_path: Path) -> Iterator[Kea]:
    """Kea, which leases for a few seconds if need be; not yet started."""
    with station("server", SUBNET[2]) as made:
        server = Kea(made, tmp_path)
        try:
            yield server
        finally:
            server.stop()
