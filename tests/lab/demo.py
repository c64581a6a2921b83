"""``make demo``: the whole system at work, step by step, from nothing to nothing.

Everything runs in the sandbox (sandbox.py), whose end removes it all, whatever ends it; what is shown there stands in
demo_story.py. With ``--keep`` it goes on running afterwards, with a kubectl for each cluster in build/demo, until
``make demo-stop``.

Who runs, holds a lock on the folder: the sandbox inherits it, so the kernel gives it back when the last of them ends.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypedDict

from tests.lab.build import find
from tests.lab.console import ACCOUNT, CONSOLE_PORT
from tests.lab.demo_story import INTERRUPTED, KEPT, NAMESPACE
from tests.lab.process import LabError, wait_for

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "build" / "demo"
SANDBOX = Path(__file__).parent / "sandbox.py"
GUEST, HOST, CLIENT = "kubectl-guest", "kubectl-host", "on-client"
PID = "pid"
STOP_LIMIT_SECONDS = 30.0
KILL_LIMIT_SECONDS = 10.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAILED = 1
ENDED = (INTERRUPTED, 128 + signal.SIGTERM)
"""Exit codes of a story that was asked to end: the second before it could listen."""


class Handover(TypedDict):
    """What a demo that stays says of itself; paths are such inside of its sandbox."""

    kubeconfigs: dict[str, str]
    address: str


def run(folder: Path, *, keep: bool) -> int:
    """Start the sandbox with the story in it, and show it. Returns the exit code."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if lock is None:
        print("demo: one is running already; end it with `make demo-stop`", file=sys.stderr)
        return FAILED
    _clear(folder)  # of one that was killed
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    door = _door() if keep else None
    sandbox = _start(folder, lock, door)
    try:
        (folder / PID).write_text(str(sandbox.pid))
        kept = _copy_until_kept(sandbox) if keep else None
        if kept is not None:
            _write_scripts(folder, sandbox, kept["kubeconfigs"])
            assert door is not None
            _tell_how_to_look_around(folder, kept["address"], door.getsockname()[1], time.monotonic() - began)
            return 0
        code = sandbox.wait()
    except KeyboardInterrupt:
        print("\ndemo: interrupted; cleaning up", flush=True)
        _end(sandbox)
        code = INTERRUPTED
    if code < 0:
        code = 128 - code  # as a shell tells of a signal
    _clear(folder)
    if code == 0:
        seconds = time.monotonic() - began
        print(f"\nNothing is left but the logs, {_shown(folder / 'logs')}. The whole took {seconds:.0f} s.")
    elif code in ENDED:
        print("demo: ended; nothing is left but the logs", flush=True)
    elif code != FAILED:  # else the story has said why
        ended = f"\ndemo: its sandbox was killed (exit code {code}), and with it all that ran inside"
        print(f"{ended}; if you did not do it, the machine may be short of memory", file=sys.stderr)
    return code


def _door() -> socket.socket:
    """Where browsers on this machine find the console of a demo that stays; the kernel chooses a port where the usual
    one is taken."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(("127.0.0.1", CONSOLE_PORT))
    except OSError:
        door.bind(("127.0.0.1", 0))
    door.listen()
    return door


def _start(folder: Path, lock: int, door: socket.socket | None) -> "subprocess.Popen[bytes]":
    """Start the sandbox. One that ends by itself shares this terminal, and ends with this process, whatever ends that.

    One that stays (with a ``door``) must hang on neither: it speaks through a pipe, and as long as it has not said all,
    it ends with this process as well, since nobody reads the pipe then.
    """
    inside = [sys.executable, "-m", "tests.lab.demo_story", "--logs", str(folder / "logs")]
    inside += [f"--keep={door.fileno()}"] if door else []
    tie = [] if door else ["setpriv", "--pdeathsig", "KILL", "--"]
    return subprocess.Popen(
        [*tie, sys.executable, str(SANDBOX), *inside],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if door else None,
        stderr=subprocess.STDOUT if door else None,
        pass_fds=[lock, door.fileno()] if door else [lock],
        start_new_session=door is not None,
    )


def _copy_until_kept(sandbox: "subprocess.Popen[bytes]") -> Handover | None:
    """Show what the story says, as it comes; None when it has ended before it could stay."""
    assert sandbox.stdout is not None
    source = sandbox.stdout.fileno()
    while text := os.read(source, 65536):
        shown, kept, rest = text.partition(KEPT)
        sys.stdout.buffer.write(shown)
        sys.stdout.flush()
        if kept:
            with os.fdopen(os.dup(source), "rb") as stream:
                handover: Handover = json.loads(rest if rest.endswith(b"\n") else rest + stream.readline())
            return handover
    return None


def _end(sandbox: "subprocess.Popen[bytes]") -> None:
    sandbox.terminate()
    try:
        sandbox.wait(timeout=STOP_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        sandbox.kill()  # the kernel ends everything inside
        sandbox.wait()


def _write_scripts(folder: Path, sandbox: "subprocess.Popen[bytes]", kubeconfigs: dict[str, str]) -> None:
    """Commands that enter the sandbox, and work in whatever folder they are used."""
    (first,) = Path(f"/proc/{sandbox.pid}/task/{sandbox.pid}/children").read_text().split()
    enter = f'exec nsenter --target {first} --net --mount --pid --wdns="$PWD"'
    scripts = {
        GUEST: f"{enter} {find('kubectl')} --kubeconfig={kubeconfigs['guest']}",
        HOST: f"{enter} {find('kubectl')} --kubeconfig={kubeconfigs['host']}",
        CLIENT: f"{enter} nsenter --net=/run/netns/client",
    }
    for name, command in scripts.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\n{command} "$@"\n')
        path.chmod(0o755)


def _tell_how_to_look_around(folder: Path, address: str, port: int, seconds: float) -> None:
    guest, host, client = (_shown(folder / name) for name in (GUEST, HOST, CLIENT))
    print(f"""
All of it stays up; it took {seconds:.0f} s. What the user of the guest sees and does:
  {guest} -n {NAMESPACE} get services,pods -o wide
  {guest} -n {NAMESPACE} describe service web
  {guest} -n {NAMESPACE} expose deployment web --name=mine --type=LoadBalancer --port=80 --target-port=8080
What the operator of the host sees:
  {host} get loadbalancers -A
  {host} get ippools,ipblocks,guestclusters -A
  {host} -n shops describe loadbalancers
The same in a browser, http://127.0.0.1:{port}/, signed in with the token that this prints:
  {host} create token {ACCOUNT}
What a client on the LAN gets:
  {client} curl -s http://{address}/
What each program says: {_shown(folder / "logs")}
When you have seen enough:
  make demo-stop""")


def _shown(path: Path) -> str:
    """As one would type it in the project's folder, where make runs."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Once is enough: impatience makes the cleaning no quicker."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock for as long as anybody has it open; None when another does."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _idle(folder: Path) -> bool:
    """Whether no demo runs."""
    if not folder.exists():
        return True
    lock = _lock(folder)
    if lock is None:
        return False
    os.close(lock)
    return True


def _clear(folder: Path) -> None:
    for name in (PID, GUEST, HOST, CLIENT):
        (folder / name).unlink(missing_ok=True)


def stop(folder: Path) -> int:
    """End a demo that runs: one that was kept, one on another terminal, one whose own process was killed."""
    if _idle(folder):
        _clear(folder)
        print("demo: none is running")
        return 0
    pid = int(wait_for(f"the process id in {folder / PID}", (folder / PID).read_text, timeout=5))
    gone = partial(wait_for, "the demo's end", partial(_idle, folder))
    with contextlib.suppress(ProcessLookupError):  # it ends at this moment
        os.kill(pid, signal.SIGTERM)
        try:
            gone(timeout=STOP_LIMIT_SECONDS)
        except LabError:
            os.kill(pid, signal.SIGKILL)  # the kernel ends everything inside
    gone(timeout=KILL_LIMIT_SECONDS)
    _clear(folder)
    print(f"demo: ended; nothing is left but the logs, {_shown(folder / 'logs')}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running")
    parser.add_argument("--stop", action="store_true", help="end one that runs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where its logs and commands go, outside of /run")
    options = parser.parse_args()
    try:
        return stop(options.folder) if options.stop else run(options.folder, keep=options.keep)
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
