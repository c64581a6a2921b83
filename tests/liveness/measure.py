"""How fast a host's death is told, and what that costs: by bfdd, and by keepalived's VRRP for comparison.

``PYTHONPATH=. tests/lab/sandbox python -m tests.liveness.measure {bfdd,keepalived} [--hosts N] [--kills N] [--busy]
[--watch SECONDS]``: for so many seconds what all engines take of a core and of memory, and how often one is told of a
death that was none; then that many deaths (the last host's engine, by SIGKILL, with its link cut), with the
milliseconds until each is told. ``--busy``: with every core taken by two processes.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

from cloudprovider.liveness.api import Liveness
from cloudprovider.liveness.bfd import Pace
from tests.dataplane.lan import bridge, run, station, until
from tests.liveness.world import RealHost, RealHosts, Running, tidy

PACE = Pace(retry=1.0, slowest=1.0)


class Engine(Protocol):
    """All hosts' engines."""

    deaths: list[tuple[float, str]]
    """When who was told of a death."""

    async def whole(self) -> None:
        """Wait until all is as it should be."""
        ...

    def kill(self) -> None: ...

    async def revive(self) -> None: ...

    def pids(self) -> list[int]: ...


class Bfdd:
    """A session for each pair; whoever is told counts."""

    def __init__(self, hosts: list[RealHost], running: list[Running]) -> None:
        self.deaths: list[tuple[float, str]] = []
        self._hosts = hosts
        self._running = running
        everybody = {host.station.name: host.address for host in hosts}
        for host, one in zip(hosts, running, strict=True):
            one.watch.follow({n: a for n, a in everybody.items() if n != host.station.name})
            one.watch.on_change(lambda name, one=one, host=host: self._changed(one, host, name))  # type: ignore[misc]

    def _changed(self, one: Running, host: RealHost, name: str) -> None:
        if one.watch.state(name).liveness is Liveness.DOWN:
            self.deaths.append((time.monotonic(), f"{host.station.name} of {name}"))

    async def whole(self) -> None:
        for host, one in zip(self._hosts, self._running, strict=True):
            for other in self._hosts:
                if other is not host:
                    await one.until(other.station.name, Liveness.UP, limit=60)

    def kill(self) -> None:
        self._hosts[-1].fail()
        self._hosts[-1].cut()

    async def revive(self) -> None:
        self._hosts[-1].mend()

    def pids(self) -> list[int]:
        return [host.pid for host in self._hosts]


@contextlib.asynccontextmanager
async def bfdd(count: int, folder: Path) -> AsyncIterator[Engine]:
    with contextlib.ExitStack() as stations:
        network = RealHosts(stations, folder)
        hosts = [network.host(f"10.99.0.{11 + n}") for n in range(count)]
        async with contextlib.AsyncExitStack() as stack:
            running = [await stack.enter_async_context(Running(host.another(PACE))) for host in hosts]
            yield Bfdd(hosts, running)


class Keepalived:
    """One instance on the network, advertised every 100 ms by the host of the highest priority, which dies."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self.deaths: list[tuple[float, str]] = []
        self._names = names
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._states: dict[str, str] = {}
        for number, name in enumerate(names):
            self._fifo(name)
            self._start(name, 100 + number)

    def _fifo(self, name: str) -> None:
        path = self._folder / f"{name}.fifo"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)

        def read() -> None:
            for line in os.read(reader, 65536).decode().splitlines():
                self._states[name] = line.split()[2]  # INSTANCE "VI" MASTER 100
                if self._states[name] == "MASTER":
                    self.deaths.append((time.monotonic(), name))

        asyncio.get_running_loop().add_reader(reader, read)

    def _start(self, name: str, priority: int) -> None:
        config = self._folder / f"{name}.conf"
        config.write_text(
            f"global_defs {{\n vrrp_version 3\n vrrp_notify_fifo {self._folder}/{name}.fifo\n vrrp_rt_priority 10\n}}\n"
            f"vrrp_instance VI {{\n state BACKUP\n interface eth0\n virtual_router_id 7\n priority {priority}\n"
            " advert_int 0.1\n virtual_ipaddress {\n  10.99.0.250\n }\n}\n"
        )
        files = (f"--pid={self._folder}/{name}.pid", f"--vrrp_pid={self._folder}/{name}.vrrp")
        self._processes[name] = subprocess.Popen(
            ["ip", "netns", "exec", name, "keepalived", "-n", "-P", "-l", "-f", str(config), *files],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def whole(self) -> None:
        last = self._names[-1]
        await until(lambda: self._states.get(last) == "MASTER", "the best is master", limit=60)
        others = self._names[:-1]
        await until(lambda: all(self._states.get(n) == "BACKUP" for n in others), "the others are not", limit=60)

    def kill(self) -> None:
        last = self._names[-1]
        for pid in self._of(last):
            os.kill(pid, signal.SIGKILL)
        run(f"ip link set v-{last} down")
        self._processes[last].wait()

    async def revive(self) -> None:
        last = self._names[-1]
        run(f"ip -n {last} address flush to 10.99.0.250 dev eth0")
        run(f"ip link set v-{last} up")
        del self._states[last]
        self._start(last, 100 + len(self._names) - 1)

    def pids(self) -> list[int]:
        return [pid for name in self._names for pid in self._of(name)]

    def _of(self, name: str) -> list[int]:
        return [int((self._folder / f"{name}.{kind}").read_text()) for kind in ("pid", "vrrp")]

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()


@contextlib.asynccontextmanager
async def keepalived(count: int, folder: Path) -> AsyncIterator[Engine]:
    os.mkdir(folder)  # noqa: PTH102
    with contextlib.ExitStack() as stack:
        names = [f"h{n + 1}" for n in range(count)]
        for number, name in enumerate(names):
            stack.enter_context(station(name, f"10.99.0.{11 + number}"))
        made = Keepalived(names, folder)
        stack.callback(made.close)
        yield made


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Two processes a core that do nothing but compute."""
    loop = "while True: pass"
    made = [subprocess.Popen(["python3", "-c", loop]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in made:
            process.kill()
            process.wait()


def cpu(pids: list[int]) -> float:
    """Seconds that processes were on a CPU, as the scheduler counts them."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def memory(pids: list[int]) -> list[int]:
    """Kilobytes that each has for itself alone."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return [sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) for text in rollups]


async def measure(engine: Engine, options: argparse.Namespace) -> None:
    await engine.whole()
    engine.deaths.clear()
    pids = engine.pids()
    if options.watch:
        begin, before = time.monotonic(), cpu(pids)
        await asyncio.sleep(options.watch)
        share = (cpu(pids) - before) / (time.monotonic() - begin) * 100
        print(
            f"{options.watch} s: {len(pids)} processes, {share:.2f} % of a core, {sum(memory(pids))} kB in all; "
            f"false deaths: {len(engine.deaths)} {[who for _, who in engine.deaths[:9]]}",
            flush=True,
        )
    took: list[float] = []
    told: list[int] = []
    for _ in range(options.kills):
        await asyncio.sleep(random.uniform(1.0, 1.1))  # intervals are agreed on first; at any moment of one
        engine.deaths.clear()
        begin = time.monotonic()
        engine.kill()
        await until(lambda: bool(engine.deaths), "a death is told", limit=10)
        took.append((engine.deaths[0][0] - begin) * 1000)
        await asyncio.sleep(1.5)
        told.append(len({who.split()[0] for _, who in engine.deaths if not who.startswith(f"h{options.hosts} ")}))
        await engine.revive()
        await engine.whole()
    if took:
        print(
            f"{len(took)} deaths: median {statistics.median(took):.0f} ms, worst {max(took):.0f} ms; told to "
            f"{min(told)} to {max(told)} of {options.hosts - 1} hosts",
            flush=True,
        )


async def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=["bfdd", "keepalived"])
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--watch", type=float, default=0)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    folder = Path(os.environ["TMPDIR"]) / "measure"
    make = bfdd if options.engine == "bfdd" else keepalived
    print(f"# {options.engine}, {options.hosts} hosts{', every core busy' if options.busy else ''}", flush=True)
    with tidy(), bridge():
        async with make(options.hosts, folder) as engine:
            with busy() if options.busy else contextlib.nullcontext():
                await measure(engine, options)


if __name__ == "__main__":
    asyncio.run(main())
