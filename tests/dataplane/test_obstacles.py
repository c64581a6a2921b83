"""What a host's settings put in the way is said when the network is opened, with what to do."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cloudprovider.dataplane import obstacles
from cloudprovider.dataplane.rtnetlink import Link, RouteSocket
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import BRIDGE, CONFIG, Station, run

pytestmark = pytest.mark.kernel


@pytest.fixture
async def dataplane(lan: None) -> AsyncIterator[HostDataPlane]:
    made = HostDataPlane("test")
    yield made
    await made.close()
    for network in await made.networks():
        await made.remove(network)


def device(name: str) -> Link:
    route = RouteSocket()
    try:
        link = route.link(name)
    finally:
        route.close()
    assert link is not None
    return link


async def test_a_host_that_is_as_it_should_be_has_none(
    dataplane: HostDataPlane, caplog: pytest.LogCaptureFixture
) -> None:
    segment = await dataplane.open(CONFIG)
    assert (segment.dsr_obstacle, segment.host_obstacle) == ("", "")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("sysctl -qw net.bridge.bridge-nf-call-iptables=1", "sysctl -w net.bridge.bridge-nf-call-iptables=0"),
        ("sysctl -qw net.bridge.bridge-nf-call-ip6tables=1", "sysctl -w net.bridge.bridge-nf-call-ip6tables=0"),
        (
            f"ip link set {BRIDGE} type bridge nf_call_iptables 1",
            f"ip link set {BRIDGE} type bridge nf_call_iptables 0",
        ),
        (
            f"ip link set {BRIDGE} type bridge nf_call_ip6tables 1",
            f"ip link set {BRIDGE} type bridge nf_call_ip6tables 0",
        ),
    ],
)
async def test_bridged_frames_in_the_hosts_firewall_are_an_obstacle_to_dsr(
    dataplane: HostDataPlane, caplog: pytest.LogCaptureFixture, command: str, remedy: str
) -> None:
    run(command)
    segment = await dataplane.open(CONFIG)
    assert f"run {remedy} and restart the agent" in segment.dsr_obstacle
    assert segment.host_obstacle == ""
    with caplog.at_level(logging.WARNING):
        await segment.close()
        await dataplane.open(CONFIG)
    assert [record.__dict__["limit"] for record in caplog.records[-1:]] == [segment.dsr_obstacle]
    await dataplane.close()
    run(remedy)
    assert (await dataplane.open(CONFIG)).dsr_obstacle == ""


async def test_without_br_netfilter_there_is_none(lan: None, tmp_path: Path) -> None:
    run("sysctl -qw net.bridge.bridge-nf-call-iptables=1")
    assert obstacles.of_dsr(device(BRIDGE)) != ""
    assert obstacles.of_dsr(device(BRIDGE), sysctls=tmp_path / "bridge") == ""


async def test_a_host_can_not_reach_the_vips_on_a_macvlan_of_its_device(
    dataplane: HostDataPlane, client: Station
) -> None:
    """The client's own link to the bridge stands for the host's card; the client is the neighbour that reaches it."""
    run("ip link add card type veth peer name far")
    try:
        run("ip address add 10.99.0.3/24 dev card")
        run("ip link set card up")
        run(f"ip link set far master {BRIDGE} up")
        run("sysctl -qw net.bridge.bridge-nf-call-iptables=1")
        segment = await dataplane.open(replace(CONFIG, device="card"))
        assert "card is no bridge" in segment.host_obstacle
        assert segment.dsr_obstacle == ""  # the frames pass no bridge of this host
        await segment.engine.start()
        await segment.announcer.claim([IPv4Address("10.99.0.100")])
        run(f"ip netns exec {client.name} ping -c 1 -W 2 10.99.0.100")
        (claim,) = await segment.announcer.claim([IPv4Address("10.99.0.3")])
        assert claim.conflict == device("card").mac, "the card's own, which no probe from a macvlan of it finds"
        assert IPv4Address("10.99.0.3") not in await segment.announcer.held()
    finally:
        await dataplane.close()
        await dataplane.remove("")
        run("ip link del card")
