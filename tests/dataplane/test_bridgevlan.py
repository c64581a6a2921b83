"""A bridge port's VLAN. What the kernel does with it is unproven: the tests' one has no VLAN filtering."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import bridgevlan, namespace
from cloudprovider.dataplane.rtnetlink import Link, RouteSocket
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import BRIDGE, CONFIG, run

BRIDGE_LINK = Link(index=2, name="br0", mac="", mtu=1500, kind="bridge", alias="", master=0, up=True)


def test_the_messages_are_those_of_iproute2() -> None:
    """As strace shows them of "bridge vlan add dev p0 vid 8 pvid untagged", "del ... vid 1-7" and "del ... vid 1"."""
    assert bridgevlan.joined(8).hex() == "0c001a000800020006000800"
    before, after = bridgevlan.left(8)
    assert before.hex() == "14001a0008000200080001000800020010000700"
    assert after.hex() == "14001a000800020008000900080002001000fe0f"
    assert bridgevlan.left(2)[0].hex() == "0c001a000800020000000100"
    assert len(bridgevlan.left(1)) == len(bridgevlan.left(4094)) == 1


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (BRIDGE_LINK, "bridge br0 does not filter VLANs, so that a port of it can't join VLAN 8"),
        (replace(BRIDGE_LINK, kind="bond", name="bond0"), "bond0 is no bridge, so that VLAN 8 can't be joined on it"),
    ],
)
def test_what_has_no_vlans_is_refused(device: Link, said: str) -> None:
    bridgevlan.check(replace(BRIDGE_LINK, filters_vlans=True), 8)
    with pytest.raises(DataPlaneError, match=said):
        bridgevlan.check(device, 8)


@pytest.mark.kernel
async def test_a_network_of_a_vlan_that_can_not_be_joined_leaves_nothing(lan: None) -> None:
    before = run("ip -br link")
    with pytest.raises(DataPlaneError, match="bridge br0 does not filter VLANs"):
        await HostDataPlane("test").open(replace(CONFIG, vlan=8))
    assert run("ip -br link") == before
    assert namespace.names() == []


@pytest.fixture
def port(lan: None) -> Iterator[Link]:
    run("ip link add port type veth peer name far")
    run(f"ip link set port master {BRIDGE}")
    route = RouteSocket()
    link = route.link("port")
    route.close()
    assert link is not None
    yield link
    run("ip link del port")


@pytest.mark.kernel
def test_a_kernel_without_vlan_filtering_says_so(port: Link) -> None:
    route = RouteSocket()
    try:
        with pytest.raises(
            DataPlaneError, match="refused to have port in VLAN 8 of bridge br0 only: Operation not supp"
        ):
            bridgevlan.join(route, port, BRIDGE_LINK, 8)
    finally:
        route.close()
