"""Namespaces: made, adopted, mended, removed; only what is ours, and all of it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import namespace, sysctls
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import BRIDGE, CONFIG, OWN, run

pytestmark = pytest.mark.kernel

LONG = "a-namespace-with-a-rather-long-name/and-a-network-whose-name-is-longer-still"


@pytest.fixture
async def dataplane(lan: None) -> AsyncIterator[HostDataPlane]:
    made = HostDataPlane("test")
    yield made
    for network in await made.networks():
        await made.remove(network)


def links() -> set[str]:
    return {line.split()[0] for line in run("ip -br link").splitlines()}


def inside(command: str) -> str:
    return run(f"ip netns exec lb-test-mgmt {command}")


async def test_removal_leaves_nothing_and_touches_nothing_foreign(dataplane: HostDataPlane) -> None:
    run("ip netns add lb-test-foreign")
    run("ip netns add other")
    before = links()
    other = HostDataPlane("test-2")  # its names begin with ours
    await other.open(CONFIG)
    for config in (CONFIG, replace(CONFIG, name=LONG), replace(CONFIG, name="default/vlan1")):
        await dataplane.open(config)
    assert sorted(await dataplane.networks()) == ["", LONG, "default/vlan1"]
    for network in await dataplane.networks():
        await dataplane.remove(network)
    assert await dataplane.networks() == []
    assert await other.networks() == [""]
    await other.remove("")
    assert links() == before
    assert namespace.names() == ["lb-test-foreign", "other"]
    assert run("ls /run/netns").split() == ["lb-test-foreign", "other"]
    run("ip netns del lb-test-foreign")
    run("ip netns del other")


async def test_a_foreign_namespace_of_our_name_is_left_alone(dataplane: HostDataPlane) -> None:
    run("ip netns add lb-test-mgmt")
    with pytest.raises(DataPlaneError, match="lb-test-mgmt is not this agent's"):
        await dataplane.open(CONFIG)
    with pytest.raises(DataPlaneError, match="lb-test-mgmt is not this agent's"):
        await dataplane.remove("")
    assert await dataplane.networks() == []
    assert namespace.names() == ["lb-test-mgmt"]
    run("ip netns del lb-test-mgmt")


async def test_a_crash_before_the_name_is_mounted_does_not_matter(dataplane: HostDataPlane) -> None:
    namespace.DIRECTORY.mkdir(exist_ok=True)
    (namespace.DIRECTORY / "lb-test-mgmt").touch()
    assert await dataplane.networks() == []
    await dataplane.remove("")
    await dataplane.open(CONFIG)
    assert await dataplane.networks() == [""]


async def test_a_failure_on_the_way_leaves_nothing(dataplane: HostDataPlane) -> None:
    before = links()

    def fail(_path: Path) -> None:
        raise DataPlaneError("no")

    with pytest.raises(DataPlaneError, match="no"):
        namespace.create("lb-test-mgmt", fail)
    with pytest.raises(DataPlaneError, match=r"default route via 203\.0\.113\.1: Network is unreachable"):
        await dataplane.open(replace(CONFIG, gateway=IPv4Address("203.0.113.1")))
    assert namespace.names() == []
    assert links() == before


async def test_a_network_that_fails_to_open_again_and_again_leaks_nothing(
    dataplane: HostDataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    await (await dataplane.open(CONFIG)).close()  # whatever is opened once for good, is open now
    before = open_files()
    with monkeypatch.context() as patched:
        patched.setitem(sysctls.IPV4, "net/ipv4/no_such_thing", "1")
        for _ in range(3):
            with pytest.raises(DataPlaneError, match=r"can't set sysctl net\.ipv4\.no_such_thing to 1"):
                await dataplane.open(CONFIG)
    assert open_files() == before
    await dataplane.open(CONFIG)


async def test_links_are_mended_and_configuration_is_followed(dataplane: HostDataPlane) -> None:
    first = await dataplane.open(CONFIG)
    await first.engine.start()
    await first.announcer.claim([IPv4Address("10.99.0.100")])
    await first.close()
    port = next(name for name in links() if name.startswith("lb")).partition("@")[0]
    run(f"ip link set {port} nomaster down")
    moved = await dataplane.open(replace(CONFIG, address=IPv4Interface("10.99.0.3/24"), gateway=None))
    assert f"master {BRIDGE}" in run(f"ip link show {port}")
    assert "10.99.0.3/24" in inside("ip address")
    assert str(OWN) not in inside("ip address")
    assert inside("ip route show default") == ""
    assert await moved.announcer.held() == {IPv4Address("10.99.0.100")}
    await moved.engine.start()
    assert "snat to 10.99.0.3" in inside("nft list chain ip cloudprovider source")
    await moved.close()
    run(f"ip link del {port}")
    again = await dataplane.open(CONFIG)
    assert str(OWN) in inside("ip address")
    assert "via 10.99.0.1" in inside("ip route show default")
    assert await again.announcer.held() == frozenset()
    assert await again.engine.intact() is False  # the rules still say 10.99.0.3
    await again.engine.start()
    assert await again.engine.intact()


async def test_the_pair_is_as_wide_as_the_bridge(dataplane: HostDataPlane) -> None:
    run(f"ip link set {BRIDGE} mtu 9000")
    await dataplane.open(CONFIG)
    assert "mtu 9000" in inside("ip link show lan0")
    assert "mtu 9000" in run(f"ip link show {BRIDGE}")


async def test_the_namespace_is_set_up_as_a_router_that_keeps_quiet(dataplane: HostDataPlane) -> None:
    await (await dataplane.open(CONFIG)).close()
    await dataplane.open(CONFIG)  # and stays so
    for name, value in {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.lan0.send_redirects": "0",
        "net.ipv4.conf.all.arp_announce": "2",
        "net.netfilter.nf_conntrack_tcp_be_liberal": "1",
        "net.ipv6.conf.lan0.accept_ra": "0",
        "net.ipv6.conf.lan0.autoconf": "0",
        "net.ipv6.conf.lan0.accept_redirects": "0",
    }.items():
        assert inside(f"sysctl -n {name}").strip() == value
    (only,) = [line.split() for line in inside("ip -6 -oneline address show dev lan0").splitlines()]
    assert only[3].startswith("fe80::")
    assert "tentative" not in only
    assert "inet6" not in run(
        "ip -6 address show dev " + next(n for n in links() if n.startswith("lb")).partition("@")[0]
    )
    assert run("sysctl -n net.ipv4.conf.all.arp_announce").strip() == "0"  # the host's is the host's
