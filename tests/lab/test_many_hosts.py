"""Three hosts on one LAN, real kernels and programs: addresses spread, change hands, and outlive a host's death."""

import contextlib
import itertools
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from cloudprovider.core.owners import MOST
from tests.lab.lab import TENANT_NAMESPACE, Lab
from tests.lab.machineroom import Host, hosts
from tests.lab.process import wait_for
from tests.lab.sniffer import Sniffer, sniffing
from tests.lab.traffic import Client, Connection
from tests.lab.workload import MODE_ANNOTATION, Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(300)]

WEB = Port(80, 8080)
COUNT = 3
"""Services for each host."""
_numbers = itertools.count(1)
BALANCERS = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{TENANT_NAMESPACE}/loadbalancers"


def is_direct(name: str) -> bool:
    """Whether a Service is in mode dsr."""
    return bool(int(name.rpartition("-")[2]) % 2)


class Room:
    """The lab with three hosts, and Services in it."""

    def __init__(self, lab: Lab, others: list[Host], work: Workspace, sniffer: Sniffer) -> None:
        self.lab = lab
        self.others = others
        self.work = work
        self.sniffer = sniffer
        self.addresses: dict[str, str] = {}

    def holders(self) -> dict[str, str]:
        """The holder of each Service's load balancer, by the Service's name."""
        return {name: record.get("node", "") for name, record in self._records().items()}

    def before(self, name: str) -> str:
        """The host by which older connections of a Service go on, "" for none."""
        return self._records()[name].get("before", "")

    def _records(self) -> dict[str, dict[str, str]]:
        """What is recorded of each Service's holder, by the Service's name."""
        found = (b for b in self.lab.host_plane.api.items(BALANCERS) if b["spec"].get("service"))
        return {
            b["spec"]["service"]["name"]: b.get("status", {}).get("holder", {})
            for b in found
            if b["spec"]["service"]["name"] in self.addresses
        }

    def on_link(self) -> dict[str, list[str]]:
        """The hosts that answer for each address."""
        hosts = {"host-1": self.lab.addresses_on_link(), **{h.name: h.addresses_on_link() for h in self.others}}
        return {a: sorted(h for h, up in hosts.items() if a in up) for a in self.addresses.values()}

    def settled(self) -> bool:
        """Whether each address is up on just the host that the record names."""
        holders = self.holders()
        link = self.on_link()
        assert all(link[a] == [holders[name]] for name, a in self.addresses.items()), (holders, link)
        return True

    def spread(self) -> dict[str, str]:
        """Wait until each host has its share; return who has what."""
        count = 1 + len(self.others)
        wait_for("all hosts to have addresses", lambda: len(set(self.holders().values())) == count, timeout=60)
        self.wait_settled()
        return self.holders()

    def wait_settled(self, **more: Callable[[], object]) -> None:
        wait_for("addresses to be up where the records say", lambda: self.settled() and all(m() for m in more.values()))


@pytest.fixture
def room(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Room]:
    """Of three hosts, or as many as the test asks for."""
    count: int = getattr(request, "param", 3)
    names = [f"web-{number}" for number in range(COUNT * count)]
    work = Workspace(lab.guest_plane.api, f"many-hosts-{next(_numbers)}")
    work.create()
    with hosts(lab, *range(2, count + 1)) as others, sniffing(lab.lan.name) as sniffer:
        made = Room(lab, others, work, sniffer)
        work.deploy("web", 2)
        for name in names:
            annotations = {MODE_ANNOTATION: "dsr" if is_direct(name) else "nat"}
            work.expose(service(name, [WEB], app="web", annotations=annotations))
        for name in names:
            made.addresses[name] = work.wait_address(name)
        for address in made.addresses.values():
            wait_for(f"{address} to answer", lambda a=address: lab.client.get(a, WEB.port))  # type: ignore[misc]
        yield made
        sniffer.check_one_at_a_time(set(made.addresses.values()))
        work.remove()


def test_addresses_are_spread_and_a_host_s_death_is_survived(room: Room) -> None:
    """Connections in mode dsr go on with the next host; those that it can't know of, as the dead one translated them,
    are reset at once."""
    holders = room.spread()
    victim = room.others[0]
    lost = {name: room.addresses[name] for name, host in holders.items() if host == victim.name}
    client = room.lab.client
    client.forget_neighbours()
    for address in room.addresses.values():
        assert client.get(address, WEB.port).pod
    with contextlib.ExitStack() as stack:
        flows = {name: stack.enter_context(client.connect(address, WEB.port)) for name, address in lost.items()}
        assert all(flow.get().pod for flow in flows.values())
        began = time.monotonic()
        victim.pull_the_plug()
        for address in lost.values():
            _answered(client, address)
        print(f"answered again after {time.monotonic() - began:.2f} s")
        for name, flow in flows.items():
            if is_direct(name):
                assert flow.get().pod
                continue
            with pytest.raises(ConnectionResetError):
                flow.get()
    room.wait_settled()
    kept = {name: host for name, host in holders.items() if host != victim.name}
    assert {name: host for name, host in room.holders().items() if name in kept} == kept, "nothing else moves"


@pytest.mark.parametrize("room", [10], indirect=True)
def test_of_ten_hosts_two_die_at_once(room: Room) -> None:
    """What they had is taken over by the others, each its part; no other address moves."""
    holders = room.spread()
    loads = Counter(holders.values())
    assert max(loads.values()) <= math.ceil(MOST * COUNT), loads
    victims = room.others[3:5]
    lost = [name for name, host in holders.items() if host in {victim.name for victim in victims}]
    room.lab.client.forget_neighbours()
    began = time.monotonic()
    for victim in victims:
        victim.pull_the_plug()
    for name in lost:
        _answered(room.lab.client, room.addresses[name])
    print(f"{len(lost)} addresses answered again after {time.monotonic() - began:.2f} s")
    room.wait_settled()
    after = room.holders()
    assert {name for name in after if after[name] != holders[name]} == set(lost)
    assert len({after[name] for name in lost}) > 1, after


def test_a_host_that_is_drained_loses_nothing(room: Room) -> None:
    """Its node is cordoned: what it has goes elsewhere, connections go on in both modes, and none that begins fails.
    Those of mode nat go on by the drained host, also when it comes back and its agent was started anew; it dies, and
    they are reset."""
    wait_for("all to be spread", lambda: set(Counter(room.holders().values()).values()) == {COUNT}, timeout=60)
    holders = room.spread()
    room.lab.client.forget_neighbours()
    leaving = room.others[1].name
    its = {name: room.addresses[name] for name, host in holders.items() if host == leaving}
    with contextlib.ExitStack() as stack:
        flows = [
            (name, stack.enter_context(room.lab.client.connect(address, WEB.port)))
            for name, address in its.items()
            for _ in range(10)
        ]
        _drain(room, leaving, list(its.values()), [flow for _, flow in flows])
        translated = [name for name in its if not is_direct(name)]
        assert translated
        assert {room.before(name) for name in translated} == {leaving}
        for host in room.others:
            assert host.agent is not None
            host.agent.kill()
            host.agent.start()
        assert all(flow.get().pod for _, flow in flows)
        room.others[1].pull_the_plug()
        wait_for("the others to know", lambda: not any(room.before(name) for name in translated))
        for name, flow in flows:
            if is_direct(name):
                assert flow.get().pod
                continue
            with pytest.raises(ConnectionResetError):
                flow.get()
    kept = {name: host for name, host in holders.items() if host != leaving}
    assert {name: host for name, host in room.holders().items() if name in kept} == kept, "nothing else moves"


def _drain(room: Room, leaving: str, its: list[str], flows: list[Connection]) -> None:
    assert all(flow.get().pod for flow in flows)
    failed: list[str] = []
    ended = threading.Event()

    def knock() -> None:
        while not ended.is_set():
            for address in its:
                try:
                    room.lab.client.get(address, WEB.port)
                except OSError as error:
                    failed.append(f"{address}: {error}")

    knocking = threading.Thread(target=knock)
    knocking.start()
    room.lab.host_plane.api.patch(f"/api/v1/nodes/{leaving}", {"spec": {"unschedulable": True}})
    try:
        wait_for("it to have nothing", lambda: leaving not in room.holders().values(), timeout=30)
        room.wait_settled()
    finally:
        ended.set()
        knocking.join()
    assert failed == []
    assert all(flow.get().pod for flow in flows)


def test_an_agent_that_hangs_moves_nothing(room: Room) -> None:
    """The host forwards as before; its Lease expires, and whoever asks for its addresses is answered by its kernel."""
    holders = room.spread()
    hanging = room.others[0]
    its = [room.addresses[name] for name, host in holders.items() if host == hanging.name]
    assert hanging.agent is not None
    os.kill(hanging.agent.process.pid, signal.SIGSTOP)
    end = time.monotonic() + 25
    try:
        while time.monotonic() < end:
            for address in its:
                assert room.lab.client.get(address, WEB.port).pod
    finally:
        os.kill(hanging.agent.process.pid, signal.SIGCONT)
    assert room.on_link() == {room.addresses[name]: [host] for name, host in holders.items()}
    room.wait_settled()


def _answered(client: Client, address: str) -> None:
    def asked() -> bool:
        return bool(client.get(address, WEB.port, timeout=0.2).pod)

    wait_for(f"{address} to answer again", asked, timeout=5, period=0.01)
