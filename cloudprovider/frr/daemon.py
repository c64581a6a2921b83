"""A daemon of FRR (bfdd, bgpd) as a process inside a network's namespace: found or started, reached, ended.

It needs neither zebra nor a configuration. It is started as root, and gives up all but a few capabilities (bind,
raw sockets, CAP_NET_ADMIN, CAP_SYS_ADMIN) as the user frr; for that the agent itself needs CAP_SETUID, CAP_SETGID,
CAP_NET_BIND_SERVICE, and CAP_SYS_NICE for a priority.

It outlives an agent that is killed: the host still forwards, and others must not take that for its death. The next
agent finds it by its socket and goes on with it. In a container it ends with the agent, by SIGKILL.

Its files lie in a directory named by the namespace's inode, which is no other's as long as a process is in it. It is
the user frr who makes them, so the directory is open to all, inside one that only root may enter; the daemon starts in
it and knows it as ".". Nobody else comes to its socket.
"""

import asyncio
import contextlib
import fcntl
import grp
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

OpenSocket: TypeAlias = Callable[[Callable[[str], socket.socket]], Awaitable[socket.socket]]
"""Opens a socket inside a network's namespace by a function that is given the link's name; the data plane's
``Segment.packets`` is one. Raises DataPlaneError, and what the function raises."""

_SIOCGSKNS: Final = 0x894C
"""linux/sockios.h: a file of the network namespace that a socket is in."""
_PRIORITY: Final = 10
"""Of SCHED_RR: before all that is not real-time, behind the kernel's own threads (50)."""
_NICE: Final = -20
_START: Final = 5.0
"""Seconds until its control socket is there."""
_END: Final = 2.0
_LINES: Final = 5
"""What is kept of what it says."""
_FILES: Final = 256
"""That it may have open: one a session, and a few. By default its tables are sized for the host's limit."""


class DaemonError(Exception):
    """It can't be started, reached or understood."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Which daemon. ``socket``: what it listens on for us, in its directory, and ``arguments`` that have it do so.
    ``group``: to whom alone it opens that socket; "": to all. ``real_time``: it runs before all others."""

    name: str
    socket: str
    arguments: tuple[str, ...]
    group: str = ""
    real_time: bool = False


class Connection:
    """A socket of it that is open. ``pid``: the process at its other end, as the kernel knows it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, folder: Path) -> None:
        self.reader = reader
        self.writer = writer
        self.folder = folder
        credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("iII", credentials)[0]

    async def ended(self) -> bool:
        """Whether the process closes the connection within its time, by which it is gone."""
        try:
            async with asyncio.timeout(_END):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Let go of the connection."""
        self.writer.transport.abort()


class Daemon:
    """A daemon for one namespace. ``open_socket``: opens sockets in it."""

    def __init__(self, kind: Kind, open_socket: OpenSocket, *, directory: Path, program: str) -> None:
        self._kind = kind
        self._open_socket = open_socket
        self._directory = directory
        self._program = program
        self._said: deque[str] = deque(maxlen=_LINES)
        self._listening: set[asyncio.Task[None]] = set()

    async def connect(self) -> Connection:
        """The one that runs, or a new one. Raises DaemonError, DataPlaneError."""
        try:
            namespace = await self._namespace()
            try:
                folder = self._folder(os.fstat(namespace).st_ino)
                return await self._reach(folder) or await self._start(namespace, folder)
            finally:
                os.close(namespace)
        except OSError as error:
            raise DaemonError(f"can't start {self._program}: {error}") from error

    async def find(self) -> Connection | None:
        """The one that runs, if any. Raises DaemonError, DataPlaneError."""
        try:
            namespace = await self._namespace()
            try:
                return await self._reach(self._directory / str(os.fstat(namespace).st_ino))
            finally:
                os.close(namespace)
        except OSError as error:
            raise DaemonError(f"can't reach {self._program}: {error}") from error

    async def end(self, connection: Connection, *, kill: bool = False) -> None:
        """End the one that is connected: in order, and where it does not end, or at once, by SIGKILL."""
        # As long as the connection is there, the process id is its own. 0: it is in another PID namespace.
        gone = connection.reader.at_eof()
        for number in (signal.SIGKILL,) if kill else (signal.SIGTERM, signal.SIGKILL):
            if not gone and connection.pid > 1:
                with contextlib.suppress(OSError):
                    os.kill(connection.pid, number)
                gone = await connection.ended()
        connection.close()
        if gone:
            shutil.rmtree(connection.folder, ignore_errors=True)
            await self._reap()

    async def _namespace(self) -> int:
        with await self._open_socket(lambda _link: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as inside:
            return fcntl.ioctl(inside, _SIOCGSKNS)

    def _folder(self, inode: int) -> Path:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        folder = self._directory / str(inode)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        return folder

    async def _start(self, namespace: int, folder: Path) -> Connection:
        self._said.clear()
        inside = ("nsenter", f"--net=/proc/self/fd/{namespace}", "--")
        files = ("--pid_file", "pid", "--vty_socket", ".", *self._kind.arguments)
        nothing = ("--config_file", "/dev/null", "--vty_port", "0", "--socket", "/nonexistent")
        process = await asyncio.create_subprocess_exec(
            *(*inside, self._program, *files, *nothing),
            *("--limit-fds", str(_FILES), "--log", "stdout", "--log-level", "warnings"),
            cwd=folder,
            pass_fds=(namespace,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's SIGINT is the agent's, which ends it in order
        )
        if self._kind.real_time:
            _prefer(process.pid)
        listening = asyncio.create_task(self._listen(process), name=f"{self._kind.name}'s output")
        self._listening.add(listening)
        listening.add_done_callback(self._listening.discard)
        try:
            async with asyncio.timeout(_START):
                while process.returncode is None:
                    found = await self._reach(folder)
                    if found is not None:
                        return found
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        except BaseException:
            await self._give_up(process)
            raise
        await self._give_up(process)
        raise DaemonError(f"{self._program} did not start (status {process.returncode}): {'; '.join(self._said)}")

    async def _reach(self, folder: Path) -> Connection | None:
        _join(self._kind.group)
        try:
            return Connection(*await asyncio.open_unix_connection(folder / self._kind.socket), folder)
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    async def _give_up(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(OSError):
            process.kill()
        await self._reap()

    async def _reap(self) -> None:
        """Wait for the end of what was killed, if it was ours."""
        if self._listening:
            await asyncio.wait(self._listening, timeout=_END)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep its last words, until it has ended."""
        assert process.stdout is not None  # noqa: S101 - it was asked for
        with contextlib.suppress(ValueError):  # a line without an end
            async for line in process.stdout:
                self._said.append(line.decode(errors="replace").strip())
        await process.wait()


def _join(group: str) -> None:
    """Be one of a group: without CAP_DAC_OVERRIDE, root has no more rights than others."""
    with contextlib.suppress(KeyError, OSError):  # then the socket itself says what is wrong
        if group and (number := grp.getgrnam(group).gr_gid) not in (present := os.getgroups()):
            os.setgroups([*present, number])


def _prefer(pid: int) -> None:
    """Let it run before all others: what it has to do takes microseconds, ten times a second, and a host that is only
    busy must not look dead. Where the kernel or a cgroup refuses real time, by its nice value; then as it is."""
    try:
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(_PRIORITY))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _NICE)
