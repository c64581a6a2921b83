"""Real processes, and what their kernel says of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.kube.lease import identity_of
from cloudprovider.kube.liveness import is_proven_dead, sign_of_life

ROOT = Path(__file__).parent.parent.parent
LEASE = "ns/lease"
HOLDER = """
import sys
from cloudprovider.kube.liveness import sign_of_life
with sign_of_life(sys.argv[1], sys.argv[2]) as mark:
    print(mark, flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that shows its sign of life until it ends."""

    def __init__(self) -> None:
        self.identity = identity_of("holder")
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, LEASE, self.identity],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        self.mark = self.process.stdout.readline().strip()

    def looks_dead(self) -> bool:
        return is_proven_dead(LEASE, self.identity, self.mark)


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = Holder()
    yield made
    made.process.kill()
    made.process.communicate()


def test_one_that_was_killed_is_dead_before_anybody_has_waited_for_it(holder: Holder) -> None:
    assert not holder.looks_dead()
    holder.process.kill()
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert holder.looks_dead()


def test_one_that_stands_still_lives(holder: Holder) -> None:
    holder.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert not holder.looks_dead()


def test_a_name_is_one_live_process_only(holder: Holder) -> None:
    with pytest.raises(ConfigurationError, match=holder.identity), sign_of_life(LEASE, holder.identity):
        pass
    with sign_of_life("ns/another-lease", holder.identity) as mark:
        assert mark


@pytest.mark.kernel
def test_nothing_is_said_of_one_in_another_network_namespace(holder: Holder) -> None:
    asked = (
        "import sys\nfrom cloudprovider.kube.liveness import is_proven_dead\n"
        "print(is_proven_dead(sys.argv[1], sys.argv[2], sys.argv[3]))"
    )
    command = ["unshare", "--net", sys.executable, "-c", asked, LEASE, holder.identity, holder.mark]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    assert said.stdout.strip() == "False"


def test_a_long_identity_fits() -> None:
    identity = "x" * 300
    with sign_of_life(LEASE, identity) as mark:
        assert not is_proven_dead(LEASE, identity, mark)
    assert is_proven_dead(LEASE, identity, mark)
