"""A world for the scenarios, one namespace for each, and the checker after each.

``--lane`` says where they run: in the lab (the default), or k3d, which leaves out what is marked ``lab``, and has
tests of its own (e2e/k3d).
"""

import itertools
import secrets
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.k3d.machines import unusable
from e2e.k3d_lane import K3dWorld
from e2e.lab_lane import LabWorld
from e2e.scenario import Scenario
from e2e.world import World
from tests.lab.lab import Lab
from tests.lab.process import LabError

LOGS = Path(__file__).parent.parent / "build" / "logs" / "e2e"
BRING_UP_LIMIT_SECONDS = 1200
LAST = ("test_uninstall.py", "test_upgrade.py", "test_charts.py")
"""After all others, in this order: what is installed goes, and each of the others installs anew."""
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", choices=("lab", "k3d"), default="lab", help="where the scenarios of e2e/ run")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "k3d" and config.getoption("lane") != "k3d" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("lane") == "k3d":
        left_out = [item for item in items if item.get_closest_marker("lab")]
        config.hook.pytest_deselected(items=left_out)
        kept = [item for item in items if item not in left_out]
        places = {name: number for number, name in enumerate(LAST, 1)}
        items[:] = sorted(kept, key=lambda item: places.get(item.path.name, 0))
        for item in items:
            own = item.get_closest_marker("timeout")
            # A real kubelet starts a pod in seconds, not at once; and the first one waits for the whole installation.
            limit = BRING_UP_LIMIT_SECONDS if item is items[0] else 3 * (own.args[0] if own else 60)
            item.add_marker(pytest.mark.timeout(limit), append=False)


@pytest.fixture(scope="session")
def k3d() -> Iterator[K3dWorld]:
    """Both clusters with all of it installed, up for all scenarios of a run."""
    if why := unusable():
        pytest.exit(f"the k3d lane can't run here: {why}", returncode=2)
    prefix = f"cpe2e{secrets.token_hex(3)}"
    with K3dWorld.running(prefix, Path(tempfile.mkdtemp(prefix="e2e-"))) as running:
        yield running


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The lane, up for all scenarios of a run."""
    if request.config.getoption("lane") == "k3d":
        yield request.getfixturevalue("k3d")
        return
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
        LOGS.mkdir(parents=True, exist_ok=True)
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
