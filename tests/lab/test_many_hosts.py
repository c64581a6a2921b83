"""Three hosts on one LAN, real kernels and programs: addresses spread, change hands, and outlive a host's death."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.client import Object
from tests.lab.lab import TENANT_NAMESPACE, Lab
from tests.lab.machineroom import Host, hosts
from tests.lab.network import run
from tests.lab.process import wait_for
from tests.lab.sniffer import Sniffer, sniffing
from tests.lab.traffic import Client
from tests.lab.workload import MODE_ANNOTATION, Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(300)]

WEB = Port(80, 8080)
COUNT = 9
BALANCERS = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{TENANT_NAMESPACE}/loadbalancers"


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
        found = (b for b in self.lab.host_plane.api.items(BALANCERS) if b["spec"].get("service"))
        return {
            b["spec"]["service"]["name"]: b.get("status", {}).get("holder", {}).get("node", "")
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

    def wait_settled(self, **more: Callable[[], object]) -> None:
        wait_for("addresses to be up where the records say", lambda: self.settled() and all(m() for m in more.values()))


@pytest.fixture
def room(lab: Lab) -> Iterator[Room]:
    work = Workspace(lab.guest_plane.api, "many-hosts")
    work.create()
    with hosts(lab, 2, 3) as others, sniffing(lab.lan.name) as sniffer:
        made = Room(lab, others, work, sniffer)
        work.deploy("web", 2)
        for number in range(COUNT):
            name = f"web-{number}"
            annotations = {MODE_ANNOTATION: "dsr" if number % 2 else "nat"}
            work.expose(service(name, [WEB], app="web", annotations=annotations))
        for number in range(COUNT):
            made.addresses[f"web-{number}"] = work.wait_address(f"web-{number}")
        for address in made.addresses.values():
            wait_for(f"{address} to answer", lambda a=address: lab.client.get(a, WEB.port))  # type: ignore[misc]
        yield made
        sniffer.check_one_at_a_time(set(made.addresses.values()))
        work.remove()


def test_addresses_are_spread_and_a_host_s_death_is_survived(room: Room) -> None:
    room.wait_settled()
    holders = room.holders()
    assert set(holders.values()) == {"host-1", "host-2", "host-3"}, holders
    victim = room.others[0]
    lost = [room.addresses[name] for name, host in holders.items() if host == victim.name]
    room.lab.client.forget_neighbours()
    for address in room.addresses.values():
        assert room.lab.client.get(address, WEB.port).pod
    began = time.monotonic()
    victim.pull_the_plug()
    for address in lost:
        _answered(room.lab.client, address)
    print(f"answered again after {time.monotonic() - began:.2f} s")
    room.wait_settled()
    kept = {name: host for name, host in holders.items() if host != victim.name}
    assert {name: host for name, host in room.holders().items() if name in kept} == kept, "nothing else moves"


def _answered(client: Client, address: str) -> None:
    def asked() -> bool:
        return bool(client.get(address, WEB.port, timeout=0.2).pod)

    wait_for(f"{address} to answer again", asked, timeout=40, period=0.01)


_: Object = {}
_run = run
