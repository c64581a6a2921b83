"""From ``kubectl apply`` to the kernel, on two real control planes: a lone Service, a burst, and many at rest.

``python -m tests.bench.services`` (``make bench``) inside the lab's sandbox.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudprovider import __version__
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import load as load_credentials
from tests.bench import addresses, load
from tests.bench.kernelwatch import KernelWatch
from tests.bench.load import Timeline
from tests.bench.report import Report
from tests.bench.served import serving
from tests.lab.controlplane import API_SERVER
from tests.lab.lab import Lab, ProgramName
from tests.lab.netns import set_sysctl
from tests.lab.node import OPEN
from tests.lab.process import Process

CONNECTIONS = 8
LONE = 15
LIMIT_SECONDS = 600.0
NODE_PORTS = "10000-60000"
"""The default range is full after some 1,300 Services of two ports."""
NEIGHBOURS = 200
"""So many addresses are asked before the client forgets them: a kernel holds 1,024 neighbours, of all its networks
together (net.ipv4.neigh.default.gc_thresh3)."""
REQUEST = "cloudprovider_kube_requests_total"
BLOCKS, CONFLICT = 'resource="ipblocks"', 'code="409"'
PROGRAMS: tuple[ProgramName, ...] = ("guest", "host", "agent")


@dataclass(frozen=True)
class Snapshot:
    """What programs and API servers have used and asked so far."""

    cpu: dict[str, float]
    requests: dict[str, dict[str, float]]

    @classmethod
    def take(cls, lab: Lab) -> "Snapshot":
        processes: dict[str, Process] = {name: p.process for name, p in lab.programs.items()}
        processes["guest API server"] = lab.guest_plane.processes[API_SERVER]
        processes["host API server"] = lab.host_plane.processes[API_SERVER]
        return cls(
            {name: process.cpu_seconds() for name, process in processes.items()},
            {name: program.metrics() for name, program in lab.programs.items()},
        )

    def cpu_since(self, before: "Snapshot") -> dict[str, float]:
        return {name: self.cpu[name] - before.cpu[name] for name in self.cpu}

    def requests_since(self, before: "Snapshot", programs: Sequence[ProgramName], *labels: str) -> float:
        """Requests whose labels contain all of ``labels``; leases (a clock's work, not a Service's) left out."""
        return sum(
            count - before.requests[program].get(name, 0.0)
            for program in programs
            for name, count in self.requests[program].items()
            if name.startswith(REQUEST)
            and all(label in name for label in labels)
            and 'resource="leases"' not in name
            and 'verb="watch"' not in name
            and 'verb="list"' not in name
        )


def percentile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


async def lone(client: HttpKubeClient, timeline: Timeline, kernel: KernelWatch, prefix: str) -> tuple[float, float]:
    """Medians, in ms, from the create's start to the kernel's commit, and to the address in the status."""
    commits, addresses = [], []
    for i in range(LONE):
        name = f"{prefix}-{i}"
        started = time.monotonic()
        await load.create(client, [name], timeline, 1)
        await timeline.until(lambda n=name: n in timeline.addressed, 30)  # type: ignore[misc]
        commit = kernel.first_after(started)
        if commit is None:
            raise RuntimeError(f"Service {name} has an address, but the kernel told of no change")
        commits.append(1000 * (commit - started))
        addresses.append(1000 * (timeline.addressed[name] - started))
    names = [f"{prefix}-{i}" for i in range(LONE)]
    await load.delete(client, names, timeline, 1)
    await timeline.until(lambda: all(n in timeline.gone for n in names), 60)
    return statistics.median(commits), statistics.median(addresses)


async def burst(lab: Lab, client: HttpKubeClient, timeline: Timeline, names: Sequence[str], report: Report) -> None:
    """Create all, wait for all, and add the rows."""
    count = len(names)
    before = Snapshot.take(lab)
    started = time.monotonic()
    await load.create(client, names, timeline, CONNECTIONS)
    created = time.monotonic()
    await timeline.until(lambda: all(n in timeline.addressed for n in names), LIMIT_SECONDS)
    addressed = max(timeline.addressed[n] for n in names)
    answered = await asyncio.to_thread(forwards, lab, [timeline.addresses[n] for n in names])
    await asyncio.to_thread(settled, lab)
    after = Snapshot.take(lab)
    lags = timeline.lags(names)
    report.add(f"burst of {count}: creating them", created - started, "s")
    report.add(f"burst of {count}: first create to last address", addressed - started, "s", ("<=", 40))
    report.add(f"burst of {count}: first create to last VIP answering", answered - started, "s")
    report.add(f"burst of {count}: lag p50", percentile(lags, 0.5), "s", ("<", 2))
    report.add(f"burst of {count}: lag p99", percentile(lags, 0.99), "s", ("<", 4))
    add_requests(report, f"burst of {count}", before, after, count)
    add_cpu(report, f"burst of {count}", before, after)


def settled(lab: Lab) -> None:
    """Wait until our programs ask their API servers for nothing more: events come after what they tell of."""
    last = Snapshot.take(lab)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(1)
        now = Snapshot.take(lab)
        if now.requests_since(last, PROGRAMS) == 0:
            return
        last = now
    raise RuntimeError("our programs still write, a minute after the last address")


def add_requests(report: Report, what: str, before: Snapshot, after: Snapshot, count: int) -> None:
    guest = after.requests_since(before, ["guest"]) / count
    host = after.requests_since(before, ["host", "agent"]) / count
    report.add(f"{what}: guest requests per Service", guest, "", ("<=", 3))
    report.add(f"{what}: host requests per Service", host, "", ("<=", 3.2))
    writes = after.requests_since(before, ["host"], BLOCKS)
    report.add(f"{what}: block updates per Service", writes / count, "", ("<=", 0.05))
    conflicts = after.requests_since(before, PROGRAMS, CONFLICT)
    report.add(f"{what}: conflicts", conflicts, "", ("<=", 0))


def add_cpu(report: Report, what: str, before: Snapshot, after: Snapshot) -> None:
    used = after.cpu_since(before)
    ours = sum(used[name] for name in PROGRAMS)
    report.add(f"{what}: CPU of our programs", ours, "s", ("<", 12))
    for name, seconds in used.items():
        report.add(f"{what}: CPU of {name}", seconds, "s")


def forwards(lab: Lab, addresses: Sequence[str]) -> float:
    """The moment when every address has answered the client: a node's refusal, as there are no pods, is an answer."""
    deadline = time.monotonic() + 60
    waiting = list(addresses)
    while waiting:
        waiting = [a for i, a in enumerate(waiting) if not _answers(lab, a, fresh=i % NEIGHBOURS == 0)]
        if waiting and time.monotonic() > deadline:
            raise RuntimeError(f"{len(waiting)} addresses do not answer, {waiting[0]} for one")
    return time.monotonic()


def _answers(lab: Lab, address: str, *, fresh: bool) -> bool:
    if fresh:
        lab.client.forget_neighbours()
    try:
        lab.client.connect(address, 80, timeout=0.2).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


async def removal(lab: Lab, client: HttpKubeClient, timeline: Timeline, names: Sequence[str], report: Report) -> None:
    """Delete all, and wait until they are gone."""
    count = len(names)
    before = Snapshot.take(lab)
    started = time.monotonic()
    await load.delete(client, names, timeline, CONNECTIONS)
    await timeline.until(lambda: all(n in timeline.gone for n in names), LIMIT_SECONDS)
    lags = sorted(timeline.gone[n] - timeline.asked_to_go[n] for n in names)
    await asyncio.to_thread(settled, lab)
    after = Snapshot.take(lab)
    report.add(f"deleting {count}: first delete to last gone", max(timeline.gone.values()) - started, "s")
    report.add(f"deleting {count}: lag p50", percentile(lags, 0.5), "s")
    report.add(f"deleting {count}: lag p99", percentile(lags, 0.99), "s")
    what = f"deleting {count}"
    report.add(f"{what}: guest requests per Service", after.requests_since(before, ["guest"]) / count, "")
    report.add(f"{what}: host requests per Service", after.requests_since(before, ["host", "agent"]) / count, "")
    report.add(f"{what}: block updates per Service", after.requests_since(before, ["host"], BLOCKS) / count, "")
    report.add(f"{what}: conflicts", after.requests_since(before, PROGRAMS, CONFLICT), "", ("<=", 0))
    add_cpu(report, what, before, after)


def add_memory(report: Report, lab: Lab, count: int) -> None:
    for name, program in lab.programs.items():
        report.add(f"{count} Services: resident memory of {name}", program.process.resident_bytes() / 1e6, "MB")


async def measure(lab: Lab, report: Report, services: int, scale: int) -> None:
    """All rows, in the order in which they cost."""
    for node in lab.nodes.nodes.values():
        # A thousand refusals are a thousand ICMP errors to one client; the kernel would send one a second (icmp(7)).
        set_sysctl(node.namespace.name, ipv4__icmp_ratelimit=0)
    rng = random.Random()
    credentials = load_credentials(str(lab.guest_plane.kubeconfig))
    kernel = KernelWatch(lab.segment)
    client = HttpKubeClient(
        credentials, program="bench", version=__version__, rng=rng, connections=CONNECTIONS, deadline=60
    )
    async with client, load.watching(client) as timeline:
        add_memory(report, lab, 0)
        await lone(client, timeline, kernel, "warm-up")
        commit, address = await lone(client, timeline, kernel, "lone")
        report.add("lone Service: create to kernel commit, median", commit, "ms", ("<", 150))
        report.add("lone Service: create to address in its status, median", address, "ms")
        served = await asyncio.to_thread(serving, lab)
        report.add("lone Service with a pod: create to served by all nodes (kube-proxy's share)", served.by_nodes, "ms")
        report.add("lone Service with a pod: create to a page through its address", served.by_address, "ms")
        names = [f"s-{i}" for i in range(scale)]
        await burst(lab, client, timeline, names[:services], report)
        add_memory(report, lab, services)
        await removal(lab, client, timeline, names[:services], report)
        if scale > services:
            more = [f"t-{i}" for i in range(scale)]
            await load.create(client, more, timeline, CONNECTIONS)
            await timeline.until(lambda: all(n in timeline.addressed for n in more), LIMIT_SECONDS)
            add_memory(report, lab, scale)
            full_commit, full_address = await lone(client, timeline, kernel, "full")
            report.add(f"one more on top of {scale}: create to kernel commit, median", full_commit, "ms")
            report.add(f"one more on top of {scale}: create to address, median", full_address, "ms")
            report.add("the same, ratio to the empty system (commit)", full_commit / commit, "", ("<", 1.3))
            report.add("the same, ratio to the empty system (address)", full_address / address, "", ("<", 1.3))
    kernel.close()


def main() -> None:
    """Measure, print the table, keep the rows in ``build/bench.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=1000, help="how many in the burst (default: %(default)s)")
    parser.add_argument("--scale", type=int, default=5000, help="how many at rest (default: %(default)s)")
    options = parser.parse_args()
    build = Path("build")
    command = f"make bench SERVICES={options.services} SCALE={options.scale}"
    report = Report(build / "bench.jsonl", command)
    addresses.add_rows(report)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Lab(Path(folder), build / "bench-logs", node_port_range=NODE_PORTS, second_proxy=OPEN).running() as lab,
    ):
        try:
            asyncio.run(measure(lab, report, options.services, options.scale))
        finally:
            print(report.table())
    sys.exit(0 if all(row.holds is not False for row in report.rows) else 1)


if __name__ == "__main__":
    main()
