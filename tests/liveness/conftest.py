import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataplane.lan import bridge
from tests.lab.sandbox import ENVIRONMENT_MARK
from tests.liveness.world import FakeHosts, Hosts, RealHosts, tidy


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealHosts]:
    """Hosts on a bridge in the sandbox's own network namespace."""
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        pytest.skip("makes links and daemons: run it by tests/lab/sandbox pytest ...")
    with tidy(), bridge(), contextlib.ExitStack() as stack:
        yield RealHosts(stack, Path(os.environ["TMPDIR"]) / f"bfd-{tmp_path.name}")


@pytest.fixture(params=["fake", pytest.param("bfdd", marks=pytest.mark.kernel)])
def hosts(request: pytest.FixtureRequest) -> Hosts:
    """Every watch there is, one after the other."""
    if request.param == "fake":
        return FakeHosts()
    made: RealHosts = request.getfixturevalue("real")
    return made
