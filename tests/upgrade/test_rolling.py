"""The previous release and this one side by side, in every mixture that an upgrade can pass through.

The previous release is real: its source out of this repository's history, its definitions, its roles, its programs as
processes. What is upgraded is upgraded in any order, and any one program is taken back at any time.
"""

import contextlib
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import pytest
from typing_extensions import override

from e2e.load import Load, load
from tests.lab import checker
from tests.lab.lab import Lab
from tests.lab.process import wait_for
from tests.lab.programs import ROOT
from tests.lab.workload import MODE_ANNOTATION, Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(300)]

PREVIOUS: Final = "dafa0f04b8ea82bdeb2fdcf5ffa7cf4112f9a07f"
"""Knows both modes, but neither health checks of a Service nor virtual machines: the last commit before these came to
objects, bridge and tables. A release that ships takes its place here."""
Part = Literal["guest", "agent", "host", "definitions"]
PARTS: Final[tuple[Part, ...]] = ("guest", "agent", "host", "definitions")
"""What is upgraded, the quickest first: it is what changes most often here."""
WEB, MORE = Port(80, 8080), Port(81, 9090)
MODES = ("nat", "dsr")
PAUSE_SECONDS = 0.02
CLIENTS = 2
"""Clients of each mode that connect anew all the time: where one waits in vain, the other shows whether all do."""
GAP_SECONDS = 1.5
"""Some new connection succeeds at least that often; less than what a client waits for an answer."""
ENOUGH = 0.999
"""The part of the new connections that are answered in time: on a machine full of work one in thousands is not, also
while nothing is replaced. None is ever refused."""


@pytest.fixture(scope="module")
def previous() -> Iterator[Path]:
    """The previous release's source."""
    if subprocess.run(["git", "cat-file", "-e", PREVIOUS], cwd=ROOT, check=False, capture_output=True).returncode:
        pytest.skip(f"this checkout has no history: the previous release, commit {PREVIOUS}, can't be taken out of it")
    with tempfile.TemporaryDirectory(prefix="previous-") as folder:
        archive = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


@dataclass
class Installation:
    """Which release each part is of."""

    lab: Lab
    previous: Path
    new: set[Part] = field(default_factory=set)

    def change(self, part: Part) -> None:
        """Put the other release in a part's place."""
        self.new ^= {part}
        source = ROOT if part in self.new else self.previous
        if part == "definitions":
            self.lab.host_plane.apply_definitions(source / "manifests" / "crds")
        else:
            self.lab.replace(part, source)

    @override
    def __str__(self) -> str:
        return ", ".join(f"{part} {'new' if part in self.new else 'old'}" for part in PARTS)


@dataclass(frozen=True)
class Traffic:
    """One connection that stays, and clients that connect anew."""

    established: Load
    new: list[Load]

    @classmethod
    def begin(cls, lab: Lab, address: str, stack: contextlib.ExitStack) -> "Traffic":
        connection = stack.enter_context(lab.client.connect(address, WEB.port))
        ask = partial(lab.client.get, address, WEB.port)
        return cls(
            stack.enter_context(load(connection.get, pause=PAUSE_SECONDS)),
            [stack.enter_context(load(ask, pause=PAUSE_SECONDS)) for _ in range(CLIENTS)],
        )

    @property
    def longest_gap(self) -> float:
        """Seconds in which no new connection succeeded."""
        ended = sorted(success.ended for one in self.new for success in one.successes)
        return max((after - before for before, after in itertools.pairwise(ended)), default=float("inf"))

    @property
    def ratio(self) -> float:
        """The part of the new connections that were answered."""
        return sum(len(one.successes) for one in self.new) / sum(one.count for one in self.new)

    def check(self, when: str) -> None:
        assert not self.established.failures, when
        failures = [failure for one in self.new for failure in one.failures]
        assert all("TimeoutError" in failure.error for failure in failures), f"{when}: {failures[:3]}"
        assert self.longest_gap < GAP_SECONDS, f"{when}: {failures[:3]}"

    @override
    def __str__(self) -> str:
        count = sum(one.count for one in self.new)
        return (
            f"{self.established.count} requests by one connection, {count} new connections,"
            f" {self.ratio:.4%} of them answered, {self.longest_gap:.2f} s without"
        )


def walk() -> Iterator[Part]:
    """One part at a time through all mixtures (a Gray code), definitions changing once; then all that is old goes."""
    for number in range(1, 2 ** len(PARTS)):
        yield PARTS[(number & -number).bit_length() - 1]
    yield from ("host", "agent", "guest")


def test_the_walk_passes_through_every_mixture() -> None:
    state: frozenset[Part] = frozenset()
    seen = {state, *(state := state ^ {part} for part in walk())}
    assert len(seen) == 2 ** len(PARTS)
    assert state == frozenset(PARTS)


def test_traffic_and_addresses_through_every_mixture(previous: Path) -> None:
    """The addresses stay, no connection is cut, none is refused; in each mixture Services come, change and go."""
    logs = ROOT / "build" / "logs" / "upgrade"
    with (
        tempfile.TemporaryDirectory(prefix="lab-") as folder,
        Lab(Path(folder), logs, source=previous).running() as lab,
    ):
        work = Workspace(lab.guest_plane.api, "upgrading")
        work.create()
        work.deploy("web", 2)
        kept = {mode: _exposed(lab, work, f"kept-{mode}", mode) for mode in MODES}
        installation = Installation(lab, previous)
        with contextlib.ExitStack() as stack:
            traffic = {mode: Traffic.begin(lab, address, stack) for mode, address in kept.items()}
            for step, part in enumerate(walk()):
                # What is begun in one mixture is waited for in the next one.
                if step > 0:
                    work.set_ports(f"new-{step - 1}", [WEB, MORE])
                if step > 1:
                    work.delete(f"new-{step - 2}")
                installation.change(part)
                _exposed(lab, work, f"new-{step}", MODES[step % len(MODES)])
                if step > 0:
                    wait_for(f"the other port ({installation})", partial(_answers, lab, work, f"new-{step - 1}"))
                if step > 1:
                    work.wait_deleted(f"new-{step - 2}")
                assert {mode: work.address(f"kept-{mode}") for mode in MODES} == kept, installation
                for mode in MODES:
                    traffic[mode].check(f"mode {mode}, after {part} of: {installation}")
        for mode in MODES:
            print(f"{mode}: {traffic[mode]}")
            assert traffic[mode].ratio >= ENOUGH
        checker.wait_until_agreed(lab)
        work.remove()
        checker.wait_until_agreed(lab)


def _exposed(lab: Lab, work: Workspace, name: str, mode: str) -> str:
    """A Service before the pods; its address, once they answer there."""
    work.expose(service(name, [WEB], app="web", annotations={MODE_ANNOTATION: mode}))
    address = work.wait_address(name)
    wait_for(f"an answer of {name}", lambda: lab.client.get(address, WEB.port))
    return address


def _answers(lab: Lab, work: Workspace, name: str) -> bool:
    return lab.client.get(work.address(name), MORE.port).port == MORE.target
