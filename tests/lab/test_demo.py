"""The demo shows what it should, can be looked around in, and leaves nothing behind, however it ends."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from tests.lab import demo
from tests.lab.demo_story import NAMESPACE
from tests.lab.lab import POOL, RESERVED_POOL
from tests.lab.network import require_sandbox
from tests.lab.process import wait_for
from tests.lab.programs import ROOT
from tests.lab.workload import POOL_ANNOTATION

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(150)]

CONTROL_PLANES = "Start two real control planes: etcd, kube-apiserver, kube-controller-manager"
NODES = "Start two guest nodes with the real kube-proxy"
PROGRAMS = "Start our three programs, host, agent and guest, each with its own few rights"
STEP = re.compile(r" *\d+\.\d s  (?P<what>.+) \.\.\. (?P<outcome>.+) \((\d+ ms|\d+\.\d s)\)")
LIMIT_SECONDS = 100
STOP_LIMIT_SECONDS = 40


@dataclass(frozen=True)
class Traces:
    """What there is on this machine that a demo could leave behind."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    files: frozenset[str]

    @classmethod
    def now(cls) -> Self:
        require_sandbox()  # so that nobody else's come and go
        places = (Path("/run"), Path("/run/netns"), Path(tempfile.gettempdir()), Path("/dev/shm"))
        numbers = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return cls(
            frozenset(numbers),
            frozenset(name for number in numbers for name in _namespaces(number)),
            frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            frozenset(entry.name for entry in Path("/sys/class/net").iterdir()),
            frozenset(str(entry) for place in places for entry in place.iterdir()),
        )


def _namespaces(number: str) -> set[str]:
    """Those of one process; it may end while it is looked at."""
    try:
        return {str(entry.readlink()) for entry in Path(f"/proc/{number}/ns").iterdir()}
    except (FileNotFoundError, ProcessLookupError):
        return set()


class Stage:
    """A folder for a demo, and what was there before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = Traces.now()

    def start(self, *flags: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self._command(*flags),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own, as a terminal's job is
        )

    def run(self, *flags: str) -> "subprocess.CompletedProcess[str]":
        """To its end; a demo that stays speaks to its pipe no longer then, or this would never return."""
        command = self._command(*flags)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)

    def start_until(self, step: str, *flags: str) -> "subprocess.Popen[str]":
        """A demo that has just done ``step``."""
        demo = self.start(*flags)
        assert demo.stdout is not None
        for line in demo.stdout:
            if step in line:
                assert len(Traces.now().processes - self.before.processes) >= 10  # the sandbox, two control planes
                return demo
        raise AssertionError(f"it ended early, with {demo.wait()}")

    def nothing_is_left(self) -> None:
        """On the machine, and in the folder nothing but logs. What is killed takes a moment to be gone."""

        def unchanged() -> bool:
            assert Traces.now() == self.before
            return True

        wait_for("the state from before", unchanged, timeout=10)
        assert {entry.name for entry in self.folder.iterdir()} == {"logs"}

    def _command(self, *flags: str) -> list[str]:
        return [sys.executable, "-m", "tests.lab.demo", "--folder", str(self.folder), *flags]


@pytest.fixture
def stage() -> Iterator[Stage]:
    build = demo.FOLDER.parent  # not the temporary folder: the demo's sandbox has one of its own in its place
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="test-demo-", dir=build) as folder:
        stage = Stage(Path(folder))
        yield stage
        stage.run("--stop")  # whatever a test that failed has left


def test_it_tells_the_whole_story_and_leaves_nothing(stage: Stage) -> None:
    done = stage.run()
    assert (done.returncode, done.stderr) == (0, "")
    stage.nothing_is_left()
    told = done.stdout.splitlines()
    steps = [(match["what"], match["outcome"]) for line in told if (match := STEP.fullmatch(line))]
    assert len(steps) == sum(" ... " in line for line in told)  # each has its time
    web, dns = (_address(steps, f"Create Service {what}: its address") for what in ("web, type LoadBalancer", "dns"))
    assert POOL.holds(web)
    assert RESERVED_POOL.holds(dns)
    assert f"A second Service names its pool, by the annotation {POOL_ANNOTATION}: {RESERVED_POOL.name}" in told
    pod = r"web-\w+-\w+"
    expected = [
        (CONTROL_PLANES, "done"),
        (NODES, r"node-1 10\.77\.0\.21, node-2 10\.77\.0\.22"),
        (PROGRAMS, "done"),
        ("Create Service web, type LoadBalancer: its address", rf"{web}, of pool {POOL.name}, chosen by its scope"),
        (f"The client fetches http://{web}:80/", f"{pod} answers from its port 8080"),
        (f"The client fetches http://{web}:8081/", f"{pod} answers from its port 9090"),
        (f"The client asks {web}, UDP port 53", f"{pod} answers from its port 5353"),
        ("Create Service dns: its address", rf"{dns}, of pool {RESERVED_POOL.name}"),
        (f"The client asks {dns}, UDP port 53", f"{pod} answers from its port 5353"),
        ("Scale web to 3: of 30 requests, each pod answers", r"\w+ \d+x, \w+ \d+x, \w+ \d+x"),
        ("Scale web to 1: of 30 requests, each pod answers", r"\w+ 30x"),
        ("Node node-3 joins: the host sends to", "node-1, node-2, node-3"),
        ("Node node-3 leaves: the host sends to", "node-1, node-2"),
        ("Scale web to 0: the client, not left waiting, is", "refused"),
        ("Scale web to 2", f"{pod} answers from its port 8080"),
        (
            "Start two virtual machines with a web server, labelled app=front",
            r"vm-1 10\.77\.0\.\d+, vm-2 10\.77\.0\.\d+",
        ),
        ("Create LoadBalancer front, for app=front: its address", r"10\.77\.64\.\d+"),
        (r"Kill the server in vm-1; three checks later the other one answers", "vm-2 30x"),
        ("Start it again: each machine answers", r"vm-1 \d+x, vm-2 \d+x"),
        ("Delete Services web and dns", "gone, their addresses given back"),
        ("Delete LoadBalancer front and its machines", "gone, its address given back"),
        (f"Ask the LAN who has {web}", "nobody"),
        ("Compare both clusters, pools, kernel rules and addresses", "no difference"),
    ]
    rest = iter(steps)  # in this order, others between them
    for what, outcome in expected:
        assert any(what == found and re.fullmatch(outcome, came_to) for found, came_to in rest), (what, outcome, steps)


def _address(steps: list[tuple[str, str]], what: str) -> str:
    return dict(steps)[what].partition(",")[0]


def test_one_that_stays_can_be_used_as_it_says_and_ended(stage: Stage) -> None:
    assert stage.run("--stop").stdout == "demo: none is running\n"
    kept = stage.run("--keep")
    assert (kept.returncode, kept.stderr) == (0, "")
    second = stage.run()
    assert second.returncode == 1
    assert second.stderr == "demo: one is running already; end it with `make demo-stop`\n"
    _, _, advice = kept.stdout.partition("All of it stays up")
    *commands, last = [line.strip() for line in advice.splitlines() if line.startswith("  ")]
    assert last == "make demo-stop"
    expected = {
        "get services,pods": r"service/web +LoadBalancer .*pod/web-\S+ +1/1 +Running",
        "describe service web": r"AddressAssigned .*reachable at 10\.77\.16\.1",
        "expose deployment web": "service/mine exposed",
        "get loadbalancers": r"cluster +pool +10\.77\.64\.1.*cluster +pool +10\.77\.16\.1",
        "get ippools": r"ippool\S+/lan .*ipblock\S+/reserved-10.77.64.0 .*shops +guestcluster\S+/shop ",
        "describe loadbalancers": r"Forwarding on host host-1",
        "create token operator": r"^ey",
        "curl -s http://10.77.16.1/": r'"pod": "web-',
    }
    assert len(commands) == len(expected)
    for command, (part, answer) in zip(commands, expected.items(), strict=True):
        assert part in command
        told = _shell(command)
        assert re.search(answer, told, re.DOTALL), f"{command}\n{told}"
    client = commands[-1].partition(" ")[0]
    console = re.search(r"http://127.0.0.1:\d+/", advice)
    assert console is not None
    assert "Sign in" in _shell(f"curl -sL {console[0]}")
    mine = wait_for("the reader's own address", partial(_own_address, commands[0].partition(" ")[0]))
    wait_for("its page", lambda: "web-" in _shell(f"{client} curl -s --max-time 1 http://{mine}/ || true"))

    ended = stage.run("--stop")
    assert (ended.returncode, ended.stdout.partition(";")[0]) == (0, "demo: ended")
    stage.nothing_is_left()
    again = stage.run("--stop")
    assert (again.returncode, again.stdout) == (0, "demo: none is running\n")


def _shell(command: str) -> str:
    """A command as it is printed, typed where make runs."""
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)  # noqa: S602
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr}"
    return done.stdout


def _own_address(kubectl: str) -> str:
    return _shell(f"{kubectl} -n {NAMESPACE} get service mine -o jsonpath={{.status.loadBalancer.ingress[0].ip}}")


def by_ctrl_c(demo: "subprocess.Popen[str]") -> None:
    os.killpg(demo.pid, signal.SIGINT)  # what a terminal does


def by_sigterm(demo: "subprocess.Popen[str]") -> None:
    demo.terminate()


def by_a_crash_of_the_sandbox(demo: "subprocess.Popen[str]") -> None:
    (sandbox,) = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    os.kill(int(sandbox), signal.SIGKILL)


@dataclass(frozen=True)
class Ending:
    """A way to end it, just after a step; its exit code, and what it says last."""

    end: Callable[["subprocess.Popen[str]"], None]
    step: str
    code: int
    last: str


CLEANED = "demo: ended; nothing is left but the logs"


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(Ending(by_ctrl_c, PROGRAMS, 130, CLEANED), id="ctrl-c"),
        pytest.param(Ending(by_sigterm, PROGRAMS, 130, CLEANED), id="sigterm"),
        pytest.param(Ending(by_a_crash_of_the_sandbox, NODES, 137, "was killed (exit code 137)"), id="killed-sandbox"),
    ],
)
def test_nothing_is_left_when_it_is_ended(stage: Stage, ending: Ending) -> None:
    demo = stage.start_until(ending.step)
    ending.end(demo)
    told, complaint = demo.communicate(timeout=STOP_LIMIT_SECONDS)
    assert demo.returncode == ending.code
    assert ending.last in (told + complaint).splitlines()[-1]
    assert "Traceback" not in complaint
    stage.nothing_is_left()


@pytest.mark.parametrize("flags", [(), ("--keep",)], ids=["crash", "crash-of-one-that-would-stay"])
def test_nothing_runs_on_when_it_crashes(stage: Stage, flags: tuple[str, ...]) -> None:
    """SIGKILL, which nobody can handle: all inside ends by itself; demo-stop clears away what it had written."""
    demo = stage.start_until(CONTROL_PLANES, *flags)
    demo.kill()
    told, _ = demo.communicate(timeout=STOP_LIMIT_SECONDS)
    assert f"{PROGRAMS} ... done" not in told  # it has not merely gone on to its end
    wait_for("the end of all inside", lambda: Traces.now() == stage.before, timeout=STOP_LIMIT_SECONDS)
    assert stage.run("--stop").stdout == "demo: none is running\n"
    stage.nothing_is_left()


@pytest.mark.parametrize(
    ("arguments", "flags"), [(["demo"], []), (["demo", "KEEP=1"], ["--keep"]), (["demo-stop"], ["--stop"])]
)
def test_make_runs_it(arguments: list[str], flags: list[str]) -> None:
    told = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    )
    assert told.stdout.splitlines()[-1].split()[1:] == ["-m", "tests.lab.demo", *flags]
