"""The demo leaves nothing behind, however it ends. (What it shows, the scenarios prove.)"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.process import wait_for
from tests.lab.programs import ROOT
from tests.lab.test_sandbox import descendants, gone

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel]

DEMO = [sys.executable, "-m", "tests.lab.demo"]


def until_nodes_run() -> "subprocess.Popen[str]":
    """A demo whose control planes and nodes are up."""
    demo = subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "two guest nodes" in line:
            return demo
    raise AssertionError(f"the demo ended early, with {demo.wait()}")


def by_ctrl_c(demo: "subprocess.Popen[str]") -> None:
    os.killpg(demo.pid, signal.SIGINT)


def by_sigterm(demo: "subprocess.Popen[str]") -> None:
    demo.terminate()


def by_a_crash_of_the_lab(demo: "subprocess.Popen[str]") -> None:
    """SIGKILL for the sandbox, which nobody can handle."""
    (sandbox,) = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    os.kill(int(sandbox), signal.SIGKILL)


@pytest.mark.parametrize("end", [by_ctrl_c, by_sigterm, by_a_crash_of_the_lab])
def test_nothing_is_left(end: Callable[["subprocess.Popen[str]"], None]) -> None:
    demo = until_nodes_run()
    inside = descendants(demo.pid)
    assert len(inside) >= 10  # sandbox, two control planes, two kube-proxies
    end(demo)
    demo.communicate(timeout=40)
    assert demo.returncode not in (0, None)
    wait_for("the end of all inside", gone(inside), timeout=10)
    assert not Path("/run/netns/node-1").exists()
