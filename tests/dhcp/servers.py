"""The real servers: dnsmasq and Kea, in a station's namespace, with all they write in a folder of the test's."""

import csv
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from typing_extensions import override

from tests.dhcp.lan import ROUTER, SUBNET, Station
from tests.lab.process import Process, wait_for


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a server is to give; ``renew`` and ``rebind`` seconds, 0 for the server's own choice."""

    first: IPv4Address
    last: IPv4Address
    subnet: IPv4Network = SUBNET
    router: IPv4Address = ROUTER
    lease: int = 3600
    renew: int = 0
    rebind: int = 0
    ping: bool = False
    """Whether the server itself looks for conflicts before an offer (dnsmasq only; it stops for that up to 3 s)."""


class Server(ABC):
    """A server that can be stopped and started again with other terms; it keeps its leases."""

    def __init__(self, link: Station, folder: Path) -> None:
        self.link = link
        self.folder = folder / type(self).__name__.lower()
        self.folder.mkdir(exist_ok=True)
        self._process: Process | None = None

    def start(self, terms: Terms) -> None:
        log = self.folder / "log"
        environment = {"KEA_PIDFILE_DIR": str(self.folder), "KEA_LOCKFILE_DIR": "none"}
        self._process = Process(
            type(self).__name__, self._command(terms), log=log, namespace=self.link.name, environment=environment
        )
        self._process.start()
        self._process.wait_until("is ready", lambda: self.ready_mark in self.process.log_text())

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def forget(self) -> None:
        """Lose all leases (while stopped)."""
        for path in self.folder.glob("leases*"):
            path.unlink()

    ready_mark: str

    @abstractmethod
    def _command(self, terms: Terms) -> Sequence[str | Path]: ...

    @abstractmethod
    def leases(self) -> set[IPv4Address]:
        """The addresses that are leased, as the server has written them."""

    def wait_for_leases(self, count: int) -> set[IPv4Address]:
        return wait_for(f"{count} leases", lambda: (len(self.leases()) == count and (self.leases(),)) or None)[0]


class Dnsmasq(Server):
    """dnsmasq; its shortest lease is two minutes, T1 and T2 can be set apart."""

    ready_mark = "IP range"

    @override
    def _command(self, terms: Terms) -> Sequence[str | Path]:
        command: list[str | Path] = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
            "--port=0",
            "--interface=eth0",
            "--bind-interfaces",
            "--log-facility=-",
            "--dhcp-authoritative",
            "--dhcp-lease-max=2000",
            f"--dhcp-leasefile={self.folder / 'leases'}",
            f"--dhcp-range={terms.first},{terms.last},{terms.subnet.netmask},{terms.lease}s",
            f"--dhcp-option=3,{terms.router}",
        ]
        if not terms.ping:
            command.append("--no-ping")
        for option, seconds in ((58, terms.renew), (59, terms.rebind)):
            if seconds:
                command.append(f"--dhcp-option={option},{seconds}")
        return command

    @override
    def leases(self) -> set[IPv4Address]:
        path = self.folder / "leases"
        lines = path.read_text().splitlines() if path.exists() else []
        return {IPv4Address(line.split()[2]) for line in lines}


class Kea(Server):
    """Kea with its leases in a file."""

    ready_mark = "DHCP4_STARTED"

    @override
    def _command(self, terms: Terms) -> Sequence[str | Path]:
        config = {
            "Dhcp4": {
                "interfaces-config": {"interfaces": ["eth0"], "dhcp-socket-type": "raw"},
                "lease-database": {"type": "memfile", "name": str(self.folder / "leases"), "lfc-interval": 0},
                "authoritative": True,
                "valid-lifetime": terms.lease,
                "expired-leases-processing": {"reclaim-timer-wait-time": 1, "hold-reclaimed-time": 0},
                **({"renew-timer": terms.renew} if terms.renew else {}),
                **({"rebind-timer": terms.rebind} if terms.rebind else {}),
                "subnet4": [
                    {
                        "subnet": str(terms.subnet),
                        "pools": [{"pool": f"{terms.first} - {terms.last}"}],
                        "option-data": [{"name": "routers", "data": str(terms.router)}],
                    }
                ],
                "loggers": [
                    self._logger("kea-dhcp4", "WARN"),
                    self._logger("kea-dhcp4.dhcp4", "INFO"),
                ],
            }
        }
        path = self.folder / "config"
        path.write_text(json.dumps(config))
        # A copy, as Debian's AppArmor profile for the program's own path lets it read and write only in /etc and /var.
        program = self.folder / "kea-dhcp4"
        if not program.exists():
            shutil.copy("/usr/sbin/kea-dhcp4", program)
        return [program, "-c", path]

    def _logger(self, name: str, severity: str) -> dict[str, object]:
        return {"name": name, "severity": severity, "output_options": [{"output": "stdout", "flush": True}]}

    @override
    def leases(self) -> set[IPv4Address]:
        path = self.folder / "leases"
        rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
        # A log: the last row of an address counts; a lifetime of 0 is a deletion, state 0 a lease in use.
        last = {row["address"]: row for row in rows}
        return {IPv4Address(a) for a, row in last.items() if row["valid_lifetime"] != "0" and row["state"] == "0"}
