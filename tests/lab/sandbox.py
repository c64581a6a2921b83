"""Run a command in network, mount and PID namespaces of its own: ``tests/lab/sandbox COMMAND [ARGUMENT...]``.

Inside, loopback is up and there is no way out; ``/run`` (with ``/run/netns``) and ``/tmp``'s stand-in ``$TMPDIR``
are empty file systems in memory; all else, the home directory and caches among it, is the machine's. When the
command ends, or this program is killed with whatever signal, the kernel ends every process inside and forgets every
namespace, link, rule and mount: nothing is left to clean up.

Three processes: the outer one waits and passes SIGTERM and SIGHUP on; the namespace's first one (PID 1) reaps
orphans; the command. SIGINT is left to the terminal, which sends it to all of them: only the command acts on it.

Needs root and Linux. Uses the standard library alone, so that any Python 3.9 or later runs it.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1

ENVIRONMENT_MARK = "LAB_SANDBOX"
"""Set to 1 for everything inside."""

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise SystemExit(f"sandbox: {what}: {os.strerror(errno)}; it needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(result, f"mounting {kind or 'nothing'} on {target}")


def furnish() -> None:
    """Make the inside: mounts of its own, loopback up."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    for directory, mode in (("/run/netns", 0o755), ("/run/lock", 0o1777), ("/run/tmp", 0o1777)):
        Path(directory).mkdir()
        Path(directory).chmod(mode)
    os.environ["TMPDIR"] = "/run/tmp"
    os.environ[ENVIRONMENT_MARK] = "1"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def forward_to(pid: int) -> None:
    """Pass requests to end on to ``pid``; SIGINT comes from the terminal, which reaches ``pid`` by itself."""

    def forward(number: int, _frame: "FrameType | None") -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended: the wait is about to return
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGHUP, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def wait_for(pid: int) -> int:
    """Reap children until ``pid`` has ended; return what a shell would say of it."""
    while True:
        child, status = os.wait()
        if child == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def init(command: "list[str]") -> int:
    """Be PID 1."""
    furnish()
    pid = os.fork()
    if pid == 0:
        try:
            os.execvp(command[0], command)  # noqa: S606 no shell is meant
        except OSError as error:
            print(f"sandbox: {command[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127)
    forward_to(pid)
    return wait_for(pid)


def main(command: "list[str]") -> int:
    if not command or command[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if command else 2
    if os.geteuid() != 0:
        raise SystemExit("sandbox: network namespaces need root; run it with sudo")
    # Blocked until there is somebody to forward to, so that an early signal is not lost.
    early = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, early)
    check(libc.unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID), "making namespaces")
    pid = os.fork()
    if pid == 0:
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "tying the inside to the outside")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
        os._exit(init(command))
    forward_to(pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
    return wait_for(pid)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
