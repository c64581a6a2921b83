"""How long a host's death is felt, and what a drain costs, in one lab of three hosts: ``make bench-hosts``.

``python -m tests.bench.hosts`` inside the lab's sandbox. A death is a plug pulled: no frame comes from the machine any
more, and all its processes are dead (SIGKILL). Ours and the peers die in turn, round by round.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.bench.hosts.clients import Held, first_answer, knock, streaming
from tests.bench.hosts.peers import DEFAULT, FAST, PORT, Pair, pair
from tests.bench.report import Report
from tests.lab.lab import TENANT_NAMESPACE, Lab
from tests.lab.machineroom import Host, hosts
from tests.lab.process import wait_for
from tests.lab.programs import ROOT
from tests.lab.workload import MODE_ANNOTATION, Port, Workspace, service

WEB: Final = Port(80, 8080)
ASK: Final = Port(53, 5353, "UDP")
SERVICES: Final = 24
LIMIT: Final = 30.0
SILENT: Final = "hosts are dead or cut off"
"""What an agent's log says when it knows of a death."""
HEARD: Final = "cloudprovider_agent_host_up"
BALANCERS: Final = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{TENANT_NAMESPACE}/loadbalancers"


class Ours:
    """Services spread over three hosts, of which two can die."""

    def __init__(self, lab: Lab, others: list[Host], work: Workspace) -> None:
        self._lab = lab
        self._others = others
        self.addresses: dict[str, str] = {}
        work.deploy("web", 4)
        names = [f"web-{number}" for number in range(SERVICES)]
        for number, name in enumerate(names):
            annotations = {MODE_ANNOTATION: "dsr" if number % 2 else "nat"}
            work.expose(service(name, [WEB, ASK], app="web", annotations=annotations))
        for name in names:
            self.addresses[name] = work.wait_address(name)
            self._wait_answered(self.addresses[name])

    def _wait_answered(self, address: str) -> None:
        wait_for(f"{address} to answer", lambda: self._lab.client.get(address, WEB.port))

    def _holders(self) -> dict[str, str]:
        return {
            b["spec"]["service"]["name"]: b.get("status", {}).get("holder", {}).get("node", "")
            for b in self._lab.host_plane.api.items(BALANCERS)
            if b["spec"].get("service")
        }

    def of(self, host: Host, *, direct: bool | None = None) -> list[str]:
        """The addresses that a host has, of either mode or of one."""
        holders = self._holders()
        return [
            address
            for number, (name, address) in enumerate(self.addresses.items())
            if holders.get(name) == host.name and direct in {None, bool(number % 2)}
        ]

    def whole(self, victim: Host) -> None:
        """All hosts on, in line and heard by each other, and the victim has addresses of both modes."""
        for host in self._others:
            if not host.is_on:
                host.boot()
        agents = (self._lab.programs["agent"], *(host.agent for host in self._others))
        for agent in agents:
            assert agent is not None
            wait_for("all agents to hear the others", lambda a=agent: heard(a.metrics()) == 2, timeout=60)  # type: ignore[misc]
        wait_for(
            f"{victim.name} to have addresses",
            lambda: self.of(victim, direct=True) and self.of(victim, direct=False),
            timeout=120,
        )
        for address in self.addresses.values():
            self._wait_answered(address)

    def known(self, address: str, since: float) -> float:
        """When the host that has an address now knew of the death, on the clock of :func:`time.time`: each host hears
        of it by its own session."""
        holders = self._holders()
        holder = next(holders[name] for name, its in self.addresses.items() if its == address)
        name = "program-agent.log" if holder == "host-1" else f"program-agent-{holder}.log"
        found = (json.loads(line) for line in (self._lab.logs / name).read_text().splitlines() if SILENT in line)
        times = (datetime.fromisoformat(line["time"]).timestamp() for line in found)
        return min(time for time in times if time >= since)

    def cordon(self, host: Host, *, cordoned: bool) -> None:
        """As ``kubectl cordon`` and ``kubectl uncordon`` do."""
        self._lab.host_plane.api.patch(f"/api/v1/nodes/{host.name}", {"spec": {"unschedulable": cordoned}})

    def wait_drained(self, host: Host) -> None:
        wait_for(f"{host.name} to have nothing", lambda: not self.of(host) and not host.addresses_on_link())


def heard(metrics: Mapping[str, float]) -> int:
    """How many hosts an agent hears."""
    return sum(bool(value) for name, value in metrics.items() if name.startswith(HEARD))


@dataclass
class Death:
    """One of ours. Seconds: ``answered``, until the first new connection was; ``gap``, of a dsr stream; ``beyond``, of
    that, after the host knew that has it now. ``lost``: of the established dsr connections."""

    answered: float
    gap: float
    beyond: float
    lost: list[str]


def die(lab: Lab, ours: Ours, victim: Host, held: int) -> Death:
    """Pull the victim's plug under a stream and open connections."""
    nat, direct = ours.of(victim, direct=False)[0], ours.of(victim, direct=True)[0]
    lab.client.forget_neighbours()
    open_before = Held(lab.client, direct, WEB.port, held)
    try:
        with streaming(lab.client, direct, ASK.port) as stream:
            wait_for("the stream to flow", lambda: len(stream.answered) > 50)
            lab.client.get(nat, WEB.port)
            begun, wall = time.monotonic(), time.time()
            victim.pull_the_plug()
            answered = first_answer(lab.client, nat, WEB.port, limit=LIMIT)
            wait_for("the stream to flow again", lambda: stream.answered[-1] > answered + 0.5)
        wait_for("its address to be another host's", lambda: direct not in ours.of(victim))
        start, end = stream.gap(begun)
        known = ours.known(direct, wall) - wall + begun
        return Death(answered - begun, end - start, end - known, open_before.lost())
    finally:
        open_before.close()


def die_beside(lab: Lab, pair: Pair) -> float:
    """The same for a pair; seconds until the first new connection was answered."""
    pair.whole()
    address = pair.setting.address
    wait_for(f"{address} to answer", lambda: lab.client.get(address, PORT))
    begun = time.monotonic()
    pair.kill()
    return first_answer(lab.client, address, PORT, limit=LIMIT) - begun


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="A host's death and drain, beside keepalived with haproxy.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=10_000, help="begun while a host is drained")
    parser.add_argument("--held", type=int, default=500, help="established when a host dies")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-hosts-")))
        lab = stack.enter_context(Lab(folder, ROOT / "build" / "logs" / "bench-hosts").running())
        work = Workspace(lab.guest_plane.api, "bench")
        work.create()
        others = stack.enter_context(hosts(lab, 2, 3))
        ours = Ours(lab, others, work)
        stack.callback(work.remove)
        port = node_port(work)
        backends = [f"{node.address}:{port}" for node in lab.nodes.nodes.values()]
        pairs = [stack.enter_context(pair(lab, setting, backends)) for setting in (DEFAULT, FAST)]
        report = Report(ROOT / "build" / "bench.jsonl", f"python -m tests.bench.hosts --rounds {options.rounds}")
        deaths: list[Death] = []
        beside: dict[str, list[float]] = {pair.setting.name: [] for pair in pairs}
        for turn in range(options.rounds):
            victim = others[turn % 2]
            ours.whole(victim)
            deaths.append(die(lab, ours, victim, options.held))
            for one in pairs:
                beside[one.setting.name].append(die_beside(lab, one))
            told = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in beside.items())
            last = deaths[-1]
            ours_told = (
                f"{last.answered:.2f} s, of a stream {last.gap * 1000:.0f} ms, {last.beyond * 1000:.0f} after BFD"
            )
            print(f"# {turn + 1}: ours {ours_told}; {told}", flush=True)
        add_deaths(report, deaths, beside, options.held)
        add_drain(report, lab, ours, others, options.connections)
    print(report.table())
    return int(any(row.holds is False for row in report.rows))


def node_port(work: Workspace) -> int:
    """Where the guest's nodes serve what is behind our addresses: for the peers."""
    port: int = work.get("web-0")["spec"]["ports"][0]["nodePort"]
    return port


def add_deaths(report: Report, deaths: Sequence[Death], beside: Mapping[str, Sequence[float]], held: int) -> None:
    """The rows of the deaths."""
    what = "a host's death to the first answered connection"
    answered = [death.answered for death in deaths]
    report.add(f"{what}: median", statistics.median(answered), "s", ("<", 1))
    report.add(f"{what}: worst", max(answered), "s", ("<", 2))
    for name, seconds in beside.items():
        report.add(f"the same, {name}: median", statistics.median(seconds), "s")
        report.add(f"the same, {name}: worst", max(seconds), "s")
        ratio = statistics.median(one / other for one, other in zip(answered, seconds, strict=True))
        report.add(f"ours to {name}", ratio, "", ("<", 1) if name == DEFAULT.name else None)
    report.add("gap of a dsr stream: median", statistics.median(death.gap for death in deaths) * 1000, "ms")
    report.add("gap of a dsr stream: worst", max(death.gap for death in deaths) * 1000, "ms")
    report.add("of that, after BFD told: median", statistics.median(d.beyond for d in deaths) * 1000, "ms", ("<", 50))
    report.add("of that, after BFD told: worst", max(death.beyond for death in deaths) * 1000, "ms", ("<", 50))
    lost = [error for death in deaths for error in death.lost]
    report.add(f"established dsr connections lost, of {held} each time", len(lost), "", ("<=", 0))
    for error in sorted(set(lost))[:5]:
        print(f"# lost: {error}")


def add_drain(report: Report, lab: Lab, ours: Ours, others: Sequence[Host], connections: int) -> None:
    """The rows of a drain: connections to what the host had, in both modes, while it is cordoned."""
    leaving = others[0]
    for other in others:
        ours.whole(other)
    its = ours.of(leaving)
    seen = knock(
        lab.client,
        its,
        WEB.port,
        connections,
        at=connections // 4,
        then=lambda: ours.cordon(leaving, cordoned=True),
    )
    ours.wait_drained(leaving)
    ours.cordon(leaving, cordoned=False)
    for error in sorted(set(seen.failed))[:5]:
        print(f"# failed: {error}")
    what = f"connections of {connections:,} that failed while a host was drained of {len(its)} addresses"
    report.add(what, len(seen.failed), "", ("<=", 0))
    report.add("such connections a second", connections / seen.seconds, "1/s")


if __name__ == "__main__":
    sys.exit(main())
