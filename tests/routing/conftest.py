import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataplane.lan import bridge
from tests.lab.sandbox import ENVIRONMENT_MARK
from tests.routing.world import FakeWorld, RealWorld, World, tidy


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealWorld]:
    """A host on a bridge in the sandbox's own network namespace."""
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        pytest.skip("makes links and daemons: run it by tests/lab/sandbox pytest ...")
    with tidy(), bridge(), contextlib.ExitStack() as stack:
        yield RealWorld(stack, Path(os.environ["TMPDIR"]) / f"bgp-{tmp_path.name}")


@pytest.fixture(params=["fake", pytest.param("bgpd", marks=pytest.mark.kernel)])
def world(request: pytest.FixtureRequest) -> World:
    """Every speaker there is, one after the other."""
    if request.param == "fake":
        return FakeWorld()
    made: RealWorld = request.getfixturevalue("real")
    return made
