"""The field's usual pair for the same: keepalived moves an address (VRRP, RFC 5798), haproxy behind it forwards TCP."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.dataplane.prepare import environment, peer
from tests.lab.lab import NETWORK, Lab
from tests.lab.network import Namespace
from tests.lab.process import Process, wait_for

PORT: Final = 80


@dataclass(frozen=True)
class Setting:
    """``interval``: seconds between advertisements; a master is dead after three and a bit (RFC 5798 section 6.1)."""

    name: str
    interval: float
    number: int
    """Of the virtual router, and of its first station in the LAN."""

    @property
    def address(self) -> str:
        """The address that moves."""
        return str(NETWORK[0xC800 + self.number])


DEFAULT: Final = Setting("keepalived and haproxy, 1 s as it is by default", 1.0, 30)
FAST: Final = Setting("keepalived and haproxy, 0.1 s as ours", 0.1, 35)


class _Box:
    """One machine of the pair."""

    def __init__(self, lab: Lab, setting: Setting, number: int, backends: Sequence[str]) -> None:
        self._lab = lab
        self.name = f"peer-{setting.number}-{number}"
        self._number = setting.number + number
        self._setting = setting
        self._folder = lab.folder / self.name
        self._folder.mkdir()
        log = lab.logs / f"{self.name}.log"
        config, haproxy = self._folder / "keepalived.conf", self._folder / "haproxy.cfg"
        config.write_text(_vrrp(setting, 100 - number))
        haproxy.write_text(_haproxy(setting, backends))
        files = (f"--pid={self._folder}/pid", f"--vrrp_pid={self._folder}/vrrp")
        command = (peer("keepalived"), "-n", "-P", "-l", "-f", config, *files)
        settings = environment()
        self._processes = [
            Process(f"{self.name}/keepalived", command, log=log, namespace=self.name, environment=settings),
            Process(
                f"{self.name}/haproxy",
                [peer("haproxy"), "-db", "-f", haproxy],
                log=log,
                namespace=self.name,
                environment=settings,
            ),
        ]
        self._station: Namespace | None = None

    def switch_on(self) -> None:
        self._station = self._lab.lan.station(self.name, self._number)
        self._station.sysctl(ipv4__ip_nonlocal_bind=1)
        for process in self._processes:
            process.start()

    def pull_the_plug(self) -> None:
        """Nothing comes from it any more, and all its processes are dead."""
        if self._station is None:
            return
        self._station.ip("link delete eth0")
        vrrp = self._folder / "vrrp"
        for process in self._processes:
            process.kill()
        vrrp.unlink(missing_ok=True)
        self._lab.lan.leave(self._station)
        self._station = None

    @property
    def has_it(self) -> bool:
        return self._station is not None and self._setting.address in self._station.run("ip", "-o", "-4", "address")


class Pair:
    """Two machines, of which one has the address."""

    def __init__(self, lab: Lab, setting: Setting, backends: Sequence[str]) -> None:
        self.setting = setting
        self._boxes = [_Box(lab, setting, number, backends) for number in range(2)]

    def whole(self) -> None:
        """Switch on what is off; wait until just one has the address, and has had all the time to make sure."""
        for box in self._boxes:
            box.pull_the_plug()
            box.switch_on()
        wait_for("the first machine to have the address", lambda: [b.has_it for b in self._boxes] == [True, False])

    def kill(self) -> None:
        self._boxes[0].pull_the_plug()

    def close(self) -> None:
        for box in self._boxes:
            box.pull_the_plug()


@contextlib.contextmanager
def pair(lab: Lab, setting: Setting, backends: Sequence[str]) -> Iterator[Pair]:
    """A pair before ``backends`` ("ADDRESS:PORT"), off."""
    made = Pair(lab, setting, backends)
    try:
        yield made
    finally:
        made.close()


def _vrrp(setting: Setting, priority: int) -> str:
    return f"""global_defs {{
    vrrp_version 3
}}
vrrp_instance bench {{
    state BACKUP
    interface eth0
    virtual_router_id {setting.number}
    priority {priority}
    advert_int {setting.interval}
    virtual_ipaddress {{
        {setting.address}/{NETWORK.prefixlen}
    }}
}}
"""


def _haproxy(setting: Setting, backends: Sequence[str]) -> str:
    servers = "\n".join(f"    server node{number} {backend}" for number, backend in enumerate(backends))
    return f"""defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
listen bench
    bind {setting.address}:{PORT}
{servers}
"""
