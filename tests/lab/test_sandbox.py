"""Whatever ends it, the sandbox leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.process import wait_for

pytestmark = pytest.mark.kernel

SANDBOX = Path(__file__).parent / "sandbox"
BUSY = """
ip netns add left-behind
ip link add leftbehind0 type bridge
touch /run/left-behind
sleep 600 &
echo ready
wait
"""


def start(script: str) -> "subprocess.Popen[str]":
    """A sandbox in a process group of its own, whose script has said that it is ready."""
    outer = subprocess.Popen([SANDBOX, "bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert outer.stdout is not None
    assert outer.stdout.readline() == "ready\n"
    return outer


def descendants(pid: int) -> set[int]:
    """Every process below ``pid``; threads and processes may end while they are looked at."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in (task / "children").read_text().split():
                    found |= {int(child)} | descendants(int(child))
    return found


def gone(pids: set[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_it_is_ended(number: signal.Signals) -> None:
    outer = start(BUSY)
    inside = descendants(outer.pid)
    assert len(inside) >= 3  # PID 1, the shell, its child
    outer.send_signal(number)
    outer.communicate(timeout=10)
    assert outer.returncode != 0
    wait_for("the end of all inside", gone(inside), timeout=10)
    assert not Path("/run/netns/left-behind").exists()
    assert not Path("/run/left-behind").exists()
    assert not Path("/sys/class/net/leftbehind0").exists()


def test_ctrl_c_reaches_the_command_and_its_word_is_final() -> None:
    """A terminal sends SIGINT to the whole group: only the command acts on it, and cleans up as it likes."""
    outer = start("trap 'echo cleaned; exit 42' INT; echo ready; while :; do sleep 0.1; done")
    os.killpg(outer.pid, signal.SIGINT)
    told, _ = outer.communicate(timeout=10)
    assert (told, outer.returncode) == ("cleaned\n", 42)


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -KILL $$", 137), ("true", 0)])
def test_it_ends_as_the_command_does(script: str, code: int) -> None:
    assert subprocess.run([SANDBOX, "sh", "-c", script], check=False, timeout=30).returncode == code


def test_there_is_no_way_out() -> None:
    told = subprocess.run([SANDBOX, "ip", "route"], check=True, capture_output=True, text=True, timeout=30)
    assert not told.stdout
