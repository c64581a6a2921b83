"""What has to end whatever ends us: a process of a session of its own begins it, waits for our end, and ends it.

It learns of our end by the pipe between us, which the kernel closes, after SIGKILL too; Ctrl-C does not reach it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from tests.lab.process import LabError

KEEPS: Final = b"begun\n"


class Keeper:
    """The command ``begin`` is started on entry (none: nothing is), and ``end`` has been run on exit, come what may.

    ``log`` has what both say.
    """

    def __init__(self, begin: Sequence[str], end: Sequence[str], log: Path) -> None:
        self._begin, self._end, self._log = list(begin), list(end), log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        work = {"begin": self._begin, "end": self._end, "log": str(self._log.absolute())}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.keeper", json.dumps(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        return self

    def wait_begun(self, limit: float | None = None) -> None:
        """Wait until ``begin`` has ended well, for so many seconds (None: as long as it takes). Raises LabError with
        what it said last."""
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise LabError(f"{' '.join(self._begin)} has not ended within {limit:g} s: {self._tail()}")
        if self._process.stdout.readline() != KEEPS:
            raise LabError(f"{' '.join(self._begin)} has failed: {self._tail()}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises LabError when ``end`` fails and nothing else has."""
        assert self._process is not None
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            code = process.wait()
        if code != 0 and kind is None:
            raise LabError(f"{' '.join(self._end)} has failed: {self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace").strip()[-1000:] or f"see {self._log}"


def _begun(command: Sequence[str], log: int) -> bool:
    """Run a command to its end, or until our reader is gone: then it and what it has started is ended."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
    ended = os.pidfd_open(process.pid)
    try:
        select.select([ended, sys.stdin], [], [])
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        return process.wait() == 0
    finally:
        os.close(ended)


def main() -> int:
    """The process that keeps; what it is to do is its one argument."""
    work = json.loads(sys.argv[1])
    log = os.open(work["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    begun = not work["begin"] or _begun(work["begin"], log)
    if begun:
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), KEEPS)
        select.select([sys.stdin], [], [])
    os.close(sys.stdout.fileno())
    done = subprocess.run(work["end"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
