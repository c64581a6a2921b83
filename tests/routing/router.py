"""A router for tests: FRR in a namespace, as the top-of-rack switch. It hears what hosts say, and by zebra has it in
its kernel."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = Path("/usr/lib/frr")
START = 10.0


class RouterError(Exception):
    """It does not do what it is told."""


class _Daemon:
    def __init__(self, name: str, namespace: str, folder: Path, arguments: Sequence[str]) -> None:
        self.name = name
        self._folder = folder
        files = ("--pid_file", f"{name}.pid", "--vty_socket", ".", "--config_file", "/dev/null", "--vty_port", "0")
        with (folder / f"{name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace}", "--", str(PROGRAMS / name), *files, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if name == "bfdd":  # a switch's is not held up by what else runs here
            os.sched_setscheduler(self._process.pid, os.SCHED_RR, os.sched_param(10))
        end = time.monotonic() + START
        while not (folder / f"{name}.vty").exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RouterError(f"{name} did not start: {(folder / f'{name}.log').read_text()}")
            time.sleep(0.02)

    def say(self, *commands: str) -> str:
        """Say commands; return the last one's answer. Raises RouterError."""
        with socket.socket(socket.AF_UNIX) as vty:
            vty.settimeout(10)
            here = os.open(self._folder, os.O_PATH)
            try:  # the path itself may be longer than a socket's address
                vty.connect(f"/proc/self/fd/{here}/{self.name}.vty")
            finally:
                os.close(here)
            answer = ""
            for command in ("enable", *commands):
                vty.sendall(command.encode() + b"\0")
                found = b""
                while found[-4:-1] != b"\0\0\0":
                    received = vty.recv(65536)
                    if not received:
                        raise RouterError(f"{self.name} has ended")
                    found += received
                answer = found[:-4].decode()
                if found[-1] > 1:
                    raise RouterError(f"{command}: {answer.strip()}")
        return answer

    def end(self, number: int = signal.SIGTERM) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait()
        shutil.rmtree(f"/var/tmp/frr/{self.name}.{self._process.pid}", ignore_errors=True)


class Router:
    """``kernel``: what it hears becomes routes of its namespace, several at once where they are alike. ``bfd``: it has
    a bfdd, too."""

    def __init__(self, namespace: str, folder: Path, asn: int, *, kernel: bool = False, bfd: bool = False) -> None:
        self.namespace = namespace
        self.asn = asn
        self._folder = folder
        self._kernel = kernel
        self._bfd = bfd
        self._daemons: dict[str, _Daemon] = {}
        self._hosts: dict[str, list[str]] = {}

    def start(self) -> None:
        """On, with all hosts that it knows."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o777)
        zebra = ("--socket", "zserv.api")
        if self._kernel:
            self._start("zebra", *zebra)
        if self._bfd:
            self._start("bfdd", *zebra, "--bfdctl", "bfdd.sock")
        self._start("bgpd", *(zebra if self._kernel else ("--no_zebra", "--socket", "/nonexistent")))
        # Without zebra it knows of no address of its own to be named by.
        head = [f"bgp router-id 10.255.{self.asn // 256 % 256}.{self.asn % 256}"]
        head += ["no bgp ebgp-requires-policy", "no bgp default ipv4-unicast", "bgp bestpath as-path multipath-relax"]
        self.configure(*head, *(line for lines in self._hosts.values() for line in lines))

    def stop(self, number: int = signal.SIGTERM) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.end(number)
        for name in self._daemons:
            (self._folder / f"{name}.vty").unlink(missing_ok=True)
        self._daemons.clear()

    def configure(self, *lines: str) -> None:
        self._daemons["bgpd"].say("configure terminal", f"router bgp {self.asn}", *lines, "end")

    def know(self, host: str, asn: int, password: str = "", *, bfd: bool = False, timers: str = "") -> None:
        """Have sessions with a host of that AS number, or other terms than before."""
        lines = [f"neighbor {host} remote-as {asn}", f"neighbor {host} passive"]
        if password:
            lines.append(f"neighbor {host} password {password}")
        if timers:
            lines.append(f"neighbor {host} timers {timers}")
        if bfd:
            lines.append(f"neighbor {host} bfd 3 100 100")
        for family in ("ipv4", "ipv6"):
            lines += [f"address-family {family} unicast", "maximum-paths 8", "maximum-paths ibgp 8"]
            lines += [f"neighbor {host} activate", f"neighbor {host} soft-reconfiguration inbound"]
            lines.append("exit-address-family")
        if self._daemons:
            self.configure(*([f"no neighbor {host}"] if host in self._hosts else []), *lines)
        self._hosts[host] = lines

    def say(self, *commands: str) -> str:
        return self._daemons["bgpd"].say(*commands)

    def drop(self, host: str) -> None:
        """End the session with a host; it may begin anew."""
        self.say(f"clear bgp {host}")

    def paths(self, vip: str) -> list[dict[str, Any]]:
        """What it has heard of an address, as FRR tells it."""
        family, bits = ("ipv6", 128) if ":" in vip else ("ipv4", 32)
        told = json.loads(self.say(f"show bgp {family} unicast {vip}/{bits} json") or "{}")
        found: list[dict[str, Any]] = told.get("paths", [])
        return found

    def next_hops(self, vip: str) -> set[str]:
        return {hop["ip"] for path in self.paths(vip) for hop in path["nexthops"] if hop.get("used")}

    def prefixes(self) -> set[str]:
        """All that it has heard."""
        found: set[str] = set()
        for family in ("ipv4", "ipv6"):
            told = json.loads(self.say(f"show bgp {family} unicast json") or "{}")
            found |= set(told.get("routes", {}))
        return found

    def _start(self, name: str, *arguments: str) -> None:
        self._daemons[name] = _Daemon(name, self.namespace, self._folder, arguments)


@contextlib.contextmanager
def router(namespace: str, folder: Path, asn: int, *, kernel: bool = False, bfd: bool = False) -> Iterator[Router]:
    """A router that is on while the block lasts."""
    made = Router(namespace, folder, asn, kernel=kernel, bfd=bfd)
    try:
        made.start()
        yield made
    finally:
        made.stop()
