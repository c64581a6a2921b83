from collections.abc import AsyncIterator

import pytest

from cloudprovider.probe.prober import SocketProber
from tests.probe.servers import here


@pytest.fixture
async def prober() -> AsyncIterator[SocketProber]:
    """The real one, on loopback."""
    made = SocketProber(here)
    yield made
    made.close()
