"""A world for the scenarios, one namespace for each, and the checker after each."""

import itertools
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.lab_lane import LabWorld
from e2e.scenario import Scenario
from e2e.world import World
from tests.lab.lab import Lab
from tests.lab.process import LabError

LOGS = Path(__file__).parent.parent / "build" / "logs" / "e2e"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The lab, up for all scenarios of a run."""
    with tempfile.TemporaryDirectory(prefix="e2e-") as folder, Lab(Path(folder), LOGS).running() as lab:
        yield LabWorld(lab)


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture
def scenario(world: World, request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """A fresh namespace in a world in which everything runs; afterwards all that the scenario made is removed, and
    both sides must agree, before that and after it; and no program may have asked for what its role does not allow."""
    world.restore()
    world.client.forget_neighbours()
    scenario = Scenario(world, f"scenario-{next(_numbers)}")
    scenario.guest.create()
    yield scenario
    if request.node.stash.get(_failed, False):
        path = LOGS / f"failure-{scenario.guest.namespace}.txt"
        path.write_text(f"{request.node.nodeid}\n{world.describe()}")
        print(f"how things stood: {path}; logs of all programs beside it")
    world.restore()
    try:
        world.wait_until_agreed()
    finally:
        with suppress(LabError):  # the agreement below tells what is left
            scenario.guest.remove()
        world.wait_until_agreed()
        world.check_rights()
