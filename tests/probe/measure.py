"""What probes cost: ``PYTHONPATH=. tests/lab/sandbox python tests/probe/measure.py [NODES...]`` (1000 5000).

Nodes are addresses of one namespace, a server of one process behind them answers as kube-proxy does. Prints for each
number of nodes: the prober's share of one core (user and system time, of that the kernel's part at both ends that runs
in the sender's context), probes by outcome, and how late the worst answer was.
"""

import asyncio
import contextlib
import resource
import select
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address

from cloudprovider.core.health import Answer, Check, Outcome
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.probe.api import Prober, Target
from cloudprovider.probe.nodes import HEALTHZ_PORT, NodeProbes
from cloudprovider.probe.prober import SocketProber
from tests.dataplane.lan import CONFIG, Station, bridge, run, station

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 157\r\nConnection: close\r\n\r\n" + b"x" * 157
)
FIRST = IPv4Address("10.96.0.1")
SECONDS = 30


def serve() -> None:
    """Answer for ever."""
    listening = socket.create_server(("", HEALTHZ_PORT), backlog=4096)
    listening.setblocking(False)
    poll = select.epoll()
    poll.register(listening, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        for number, _ in poll.poll():
            if number == listening.fileno():
                with contextlib.suppress(BlockingIOError):
                    made, _ = listening.accept()
                    made.setblocking(False)
                    clients[made.fileno()] = made
                    poll.register(made, select.EPOLLIN)
                continue
            client = clients[number]
            with contextlib.suppress(OSError):
                if client.recv(4096):
                    client.send(ANSWER)
                    client.shutdown(socket.SHUT_WR)
                    continue
            poll.unregister(number)
            clients.pop(number).close()


class Watched:
    """Passes probes on, and notes outcomes and times."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self._loop = asyncio.get_running_loop()
        self.outcomes: Counter[Outcome] = Counter()
        self.slowest = 0.0

    async def begin(self, target: Target, timeout: float, done: Callable[[Answer], None]) -> None:
        began = self._loop.time()

        def ended(answer: Answer) -> None:
            self.outcomes[answer.outcome] += 1
            self.slowest = max(self.slowest, self._loop.time() - began)
            done(answer)

        await self._prober.begin(target, timeout, ended)

    def close(self) -> None:
        self._prober.close()


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(count: int) -> None:
    dataplane = HostDataPlane("bench")
    # All nodes behind one neighbour: the kernel's table of neighbours holds 1,024 unless told otherwise.
    segment = await dataplane.open(replace(CONFIG, gateway=IPv4Address("10.99.0.11")))
    watched = Watched(SocketProber(segment.packets))
    probes = NodeProbes(watched, now=lambda: datetime.now(UTC))
    probes.follow([FIRST + number for number in range(count)])
    running = asyncio.create_task(probes.run())
    await asyncio.sleep(Check().period + 1)
    watched.outcomes.clear()
    watched.slowest = 0.0
    before = spent()
    await asyncio.sleep(SECONDS)
    share = (spent() - before) / SECONDS
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    watched.close()
    await dataplane.remove("")
    total = sum(watched.outcomes.values())
    others = {outcome.value: number for outcome, number in watched.outcomes.items() if outcome is not Outcome.GOOD}
    print(
        f"{count} nodes every {Check().period:g} s, {SECONDS} s: {share:6.1%} of one core, "
        f"{share * SECONDS / total * 1e6:.0f} us a probe, {total} probes, "
        f"not good {others or 'none'}, slowest {watched.slowest * 1000:.0f} ms",
        flush=True,
    )


@contextlib.contextmanager
def nodes() -> Iterator[Station]:
    with station("n1", "10.99.0.11") as made:
        run(f"ip -n {made.name} route add local 10.96.0.0/16 dev lo")
        server = subprocess.Popen(
            ["ip", "netns", "exec", made.name, sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield made
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    with bridge(), nodes():
        for number in [int(argument) for argument in sys.argv[1:]] or [1000, 5000]:
            asyncio.run(measure(number))
