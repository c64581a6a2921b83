"""A network with addresses of both families, of one, or of none: what stands in the namespace, and what is mended."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Interface

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import sysctls
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import BRIDGE, CONFIG, Station, pings, run

pytestmark = pytest.mark.kernel

BOTH = replace(CONFIG, address6=IPv6Interface("fd99::2/64"), gateway6=IPv6Address("fd99::1"))
SIX = replace(BOTH, address=None, gateway=None)
NEITHER = replace(CONFIG, address=None, gateway=None)
FOUR, VIP6 = IPv4Address("10.99.0.100"), IPv6Address("fd99::100")
INSIDE = "lb-test-mgmt"


@pytest.fixture
async def dataplane(lan: None) -> AsyncIterator[HostDataPlane]:
    made = HostDataPlane("test", timing=Timing(between=0.005, listen=0.02))
    yield made
    await made.close()
    for network in await made.networks():
        await made.remove(network)


def inside(command: str) -> str:
    return run(f"ip netns exec {INSIDE} {command}")


def own() -> set[str]:
    """The addresses on the link but the link-local one."""
    listed = [line.split() for line in inside("ip -oneline address show dev lan0").splitlines()]
    return {words[3] for words in listed if not words[3].startswith("fe80::")}


def defaults() -> list[str]:
    return [inside(f"ip {family} route show default").strip() for family in ("-4", "-6")]


async def test_both_families_stand_and_can_be_used_at_once(dataplane: HostDataPlane, client: Station) -> None:
    client.take(IPv6Address("fd99::50"))
    segment = await dataplane.open(BOTH)
    assert own() == {"10.99.0.2/24", "fd99::2/64"}
    four, six = defaults()
    assert "via 10.99.0.1 " in four
    assert "via fd99::1 " in six
    assert inside("sysctl -n net.ipv6.conf.all.forwarding net.ipv6.conf.lan0.forwarding").split() == ["1", "1"]
    assert inside("sysctl -n net.ipv6.conf.lan0.accept_ra").strip() == "0"
    line = inside("ip -6 address show dev lan0 to fd99::2")
    assert "deprecated" not in line  # the namespace's own address is the source of what it has to say
    assert "tentative" not in line
    await segment.engine.start()
    await segment.announcer.claim([FOUR, VIP6])
    assert await segment.announcer.held() == {FOUR, VIP6}
    assert "src fd99::2 " in inside("ip -6 route get fd99::50")
    for address in (FOUR, VIP6):
        run(f"ip netns exec {client.name} ping -c 1 -W 2 {address}")
    assert run("sysctl -n net.ipv6.conf.all.forwarding").strip() == "0"  # the host's is the host's


async def test_configuration_is_followed_from_one_to_the_other_and_vips_stay(dataplane: HostDataPlane) -> None:
    vips: list[IPAddress] = [FOUR, VIP6]
    await (await dataplane.open(BOTH)).announcer.claim(vips)
    await dataplane.close()
    moved = replace(BOTH, address6=IPv6Interface("fd98::3/48"), gateway6=IPv6Address("fe80::1"))
    for config, addresses, routes in (
        (SIX, {"fd99::2/64"}, ["", "via fd99::1 "]),
        (moved, {"10.99.0.2/24", "fd98::3/48"}, ["via 10.99.0.1 ", "via fe80::1 "]),
        (CONFIG, {"10.99.0.2/24"}, ["via 10.99.0.1 ", ""]),
        (NEITHER, set(), ["", ""]),
        (BOTH, {"10.99.0.2/24", "fd99::2/64"}, ["via 10.99.0.1 ", "via fd99::1 "]),
    ):
        segment = await dataplane.open(config)
        assert own() == addresses | {f"{FOUR}/32", f"{VIP6}/128"}
        for found, wanted in zip(defaults(), routes, strict=True):
            assert wanted in found
            assert bool(found) == bool(wanted)
        assert await segment.announcer.held() == set(vips)
        await dataplane.close()


async def test_what_an_older_agent_left_is_brought_up_to_date(dataplane: HostDataPlane) -> None:
    """One that knew nothing of IPv6 forwarding, and of one address only."""
    await (await dataplane.open(CONFIG)).announcer.claim([FOUR])
    await dataplane.close()
    inside("sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv4.ip_forward=0 net.ipv6.conf.lan0.accept_ra=2")
    inside("ip address add fd99::9/64 dev lan0 nodad")
    inside("ip -6 route add default via fd99::99 dev lan0")
    inside("ip route del default")
    segment = await dataplane.open(BOTH)
    assert own() == {"10.99.0.2/24", "fd99::2/64", f"{FOUR}/32"}
    four, six = defaults()
    assert "via 10.99.0.1 " in four
    assert six.count("via") == 1
    assert "via fd99::1 " in six
    names = "net.ipv6.conf.all.forwarding net.ipv4.ip_forward net.ipv6.conf.lan0.accept_ra"
    assert inside(f"sysctl -n {names}").split() == ["1", "1", "0"]
    assert await segment.announcer.held() == {FOUR}


async def test_vips_are_answered_for_on_a_network_without_an_own_address(
    dataplane: HostDataPlane, client: Station
) -> None:
    client.take(IPv6Address("fd99::50"))
    segment = await dataplane.open(NEITHER)
    await segment.announcer.claim([FOUR, VIP6])
    assert not pings(client, FOUR)  # there is no way back
    assert pings(client, VIP6)  # from its own /64
    for address in (FOUR, VIP6):
        assert client.knows(address) == segment.mac


async def test_an_ipv6_address_where_there_is_no_ipv6_is_refused(
    dataplane: HostDataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"ip link set {BRIDGE} mtu 1200")
    with pytest.raises(DataPlaneError, match=r"has the IPv6 address fd99::2/64, but no IPv6: enable it in the host's"):
        await dataplane.open(BOTH)
    assert await dataplane.networks() == []
    monkeypatch.setattr(sysctls, "IPV6", {"net/ipv6/no_such_thing": "1"})
    await dataplane.open(CONFIG)  # not touched there
