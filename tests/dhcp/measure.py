"""What 300 DHCP leases cost: ``PYTHONPATH=. tests/lab/sandbox python tests/dhcp/measure.py``.

Prints for each server the seconds until all leases are held (conflict probes of 200 ms among them), are confirmed
after a restart, and are given back; with the CPU seconds of this process and of the server.
"""

import asyncio
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.dhcp.lan import SUBNET, bridge, host, station
from tests.dhcp.networks import key
from tests.dhcp.servers import Dnsmasq, Kea, Server, Terms
from tests.dhcp.waiting import until

COUNT = 300
ALL = range(COUNT)


class Stopwatch:
    """Wall clock and CPU from now on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._start = self._read()

    def tell(self, what: str) -> float:
        """Print what it took, and return the seconds."""
        wall, own, its = (now - then for now, then in zip(self._read(), self._start, strict=True))
        name = type(self._server).__name__
        print(
            f"{name:8} {COUNT} leases {what:10} {wall:6.2f} s   CPU here {own:5.2f} s, server {its:5.2f} s", flush=True
        )
        return wall

    def _read(self) -> tuple[float, float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.monotonic(), usage.ru_utime + usage.ru_stime, self._server.process.cpu_seconds()


async def measure(server: Server) -> float:
    """Print all figures, and return the seconds until all leases were held."""
    with station("host", SUBNET[3]) as link:
        async with host(link, up=False) as here:
            watch = Stopwatch(server)
            here.want(*ALL)
            had = await here.leased(*ALL)
            acquired = watch.tell("acquired")
        async with host(link, up=False) as after:
            watch = Stopwatch(server)
            after.want(*ALL, remembered=dict(enumerate(had)))
            await until("the confirmations", lambda: after.client.counts().received.get("ack") == COUNT)
            watch.tell("confirmed")
            watch = Stopwatch(server)
            for number in ALL:
                after.client.drop(key(number), release=True)
            await until("the releases", lambda: after.client.counts().sent.get("release") == COUNT)
            await until("the server has all back", lambda: not server.leases())
            watch.tell("released")
    return acquired


def measure_all() -> dict[str, float]:
    """Measure with each server; return the seconds until all leases were held, by its name."""
    found: dict[str, float] = {}
    make: Callable[..., Server]
    for make in (Dnsmasq, Kea):
        with tempfile.TemporaryDirectory() as folder, bridge(), station("server", SUBNET[2]) as at:
            server = make(at, Path(folder))
            server.start(Terms(first=SUBNET[256], last=SUBNET[900]))
            try:
                found[type(server).__name__] = asyncio.run(measure(server))
            finally:
                server.stop()
    return found


if __name__ == "__main__":
    measure_all()
