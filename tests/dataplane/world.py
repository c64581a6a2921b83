"""What contract tests run on: a data plane, the kernel's or the fake, and the network around it."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import frames
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.api import DataPlane
from cloudprovider.dataplane.fake import FakeDataPlane
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.dataplane.nodewatch import Pace
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import BRIDGE, INSIDE, run, station


@dataclass
class World:
    """A data plane, and ways to put a stranger onto its network."""

    dataplane: DataPlane
    occupy: Callable[[IPAddress], contextlib.AbstractContextManager[str]]
    """Have somebody who has the address, for a while; tells the MAC."""
    wire: Callable[[], contextlib.AbstractContextManager[socket.socket]]
    """Somebody's own packet socket on the network of the segment that is open, opened after the segment's."""
    meddle: Callable[[IPAddress, MACAddress | None], None]
    """Change, or delete, a permanent neighbour of the open segment behind its back."""


def fake_world() -> World:
    fake = FakeDataPlane("test", devices=[BRIDGE])

    @contextlib.contextmanager
    def occupy(address: IPAddress) -> Iterator[str]:
        network, mac = fake.namespaces[""], MACAddress("02:00:00:00:00:01")
        network.neighbours[address] = mac
        network.station(address, mac)
        for segment in fake.segments.values():
            segment.announcer.hear(address, str(mac))
        yield mac
        network.station(address, None)
        del network.neighbours[address]

    @contextlib.contextmanager
    def wire() -> Iterator[socket.socket]:
        yield fake.namespaces[""].packets[-1]

    def meddle(address: IPAddress, mac: MACAddress | None) -> None:
        there = fake.namespaces[""].static_neighbours
        if mac is None:
            del there[address]
        else:
            there[address] = mac

    return World(fake, occupy, wire, meddle)


def kernel_world() -> World:
    @contextlib.contextmanager
    def occupy(address: IPAddress) -> Iterator[str]:
        with station("stranger", "10.99.0.66") as made:
            made.announce(address)
            yield made.mac

    @contextlib.contextmanager
    def wire() -> Iterator[socket.socket]:
        with (
            station("stranger", "10.99.0.66") as made,
            call_in(made.path, lambda: frames.open_socket("eth0", 0x0800)) as w,
        ):
            yield w

    dataplane = HostDataPlane(
        "test", timing=Timing(between=0.005, listen=0.02), pace=Pace(confirm=0.3, answer=0.1, first=0.05, settle=0.2)
    )
    return World(dataplane, occupy, wire, meddle)


def meddle(address: IPAddress, mac: MACAddress | None) -> None:
    """In the kernel."""
    if mac is None:
        run(f"ip -n {INSIDE} neighbour del {address} dev lan0")
    else:
        run(f"ip -n {INSIDE} neighbour replace {address} lladdr {mac} nud permanent dev lan0")
