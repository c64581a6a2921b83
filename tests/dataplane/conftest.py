import os
from collections.abc import Iterator

import pytest

from tests.dataplane.lan import Station, bridge, station
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
