"""Programs of the lab as processes: each with a log file, ended by its id and never by its name."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

LOG_TAIL_LINES = 25
T = TypeVar("T")


class LabError(Exception):
    """The lab itself, not what is tested in it, went wrong."""


def wait_for(what: str, condition: Callable[[], T | None], *, timeout: float = 30, period: float = 0.05) -> T:
    """Ask ``condition`` again and again until it returns something true; return that.

    Raises LabError after ``timeout`` seconds, saying what was waited for and, where ``condition`` raised
    AssertionError or OSError the last time, what it said.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: Exception | None = None
        try:
            if result := condition():
                return result
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise LabError(f"{what}: not within {timeout:g} s" + (f"; last: {last}" if last else "")) from last
        time.sleep(period)


class Process:
    """A program that can be started, stopped, killed and started again; dies with the thread that started it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        namespace: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.namespace = namespace
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> None:
        """Start it; a running one is an error, as two of them would share a log and an address."""
        if self.running:
            raise LabError(f"{self.name} runs already (process {self.pid})")
        # setpriv: whatever becomes of the lab, the process goes with it (prctl(2), PR_SET_PDEATHSIG).
        enter = ["setpriv", "--pdeathsig", "KILL", "--"]
        if self.namespace:
            enter += ["nsenter", f"--net=/run/netns/{self.namespace}", "--"]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*enter, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id (setpriv and nsenter become the program: they only exec)."""
        if self._process is None:
            raise LabError(f"{self.name} was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def check(self) -> None:
        """Raise LabError with the end of its log if it has ended by itself."""
        if not self.running:
            raise LabError(f"{self.name} ended with {self.exit_code}; the end of {self.log}:\n{self.log_tail()}")

    def wait_until(self, what: str, condition: Callable[[], T | None], *, timeout: float = 30) -> T:
        """:func:`wait_for` which gives up at once when the process ends. Raises LabError with the end of its log."""

        def alive() -> T | None:
            self.check()
            return condition()

        try:
            return wait_for(f"{self.name}: {what}", alive, timeout=timeout)
        except LabError as error:
            if self.running:
                raise LabError(f"{error}; the end of {self.log}:\n{self.log_tail()}") from error
            raise

    def log_text(self) -> str:
        """What it has written since it was last started."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
        return ""

    def log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-LOG_TAIL_LINES:])

    def terminate(self, timeout: float = 10) -> int:
        """SIGTERM, and SIGKILL if that is not heeded in ``timeout`` seconds. Return the exit code."""
        if self._process is None:
            return 0
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                print(f"{self.name} did not end within {timeout:g} s of SIGTERM; killed", file=sys.stderr)
                self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """User and system time that it has used since it was last started."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
