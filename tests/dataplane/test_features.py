"""A kernel that lacks something: what is named, and what works all the same."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, ListenerKey
from cloudprovider.dataplane import ruleset
from cloudprovider.dataplane.features import Features, find
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import CONFIG, run

WEB = ListenerKey(IPv4Address("10.99.0.100"), "TCP", 80)
ONE, TWO = GroupId(1), GroupId(2)


def without(*words: str) -> Features:
    """Of a kernel that refuses whatever has one of these words in it."""

    def refuse(script: str) -> None:
        for word in words:
            if word in script:
                raise DataPlaneError("libnftables refused it: Operation not supported")

    return find(refuse)


def test_a_kernel_with_everything_lacks_nothing() -> None:
    assert without() == Features()


@pytest.mark.parametrize(
    ("word", "nat", "dsr"),
    [
        ("fwd to", "", "CONFIG_NFT_FWD_NETDEV"),
        ("hook ingress", "", "CONFIG_NETFILTER_INGRESS"),
        ("dnat", "CONFIG_NFT_NAT", ""),
        ("jhash", "CONFIG_NFT_HASH", "CONFIG_NFT_HASH"),
        ("reject", "CONFIG_NFT_REJECT_IPV4", ""),
        ("ct state", "CONFIG_NFT_CT", ""),
        ("update @", "", "dynset"),
    ],
)
def test_what_lacks_is_named(word: str, nat: str, dsr: str) -> None:
    found = without(word)
    assert (nat in found.nat, bool(found.nat)) == (True, bool(nat))
    assert (dsr in found.dsr, bool(found.dsr)) == (True, bool(dsr))


@pytest.mark.kernel
@pytest.mark.usefixtures("lan")
async def test_this_kernel_has_everything_and_nothing_is_left_of_the_question() -> None:
    dataplane = HostDataPlane("test")
    try:
        opened = await dataplane.open(CONFIG)
        assert opened.dsr_obstacle == ""
        assert "probe" not in run("ip netns exec lb-test-mgmt nft list ruleset")
    finally:
        await dataplane.remove("")


@pytest.mark.kernel
@pytest.mark.usefixtures("lan")
async def test_without_passing_frames_on_mode_nat_works_and_mode_dsr_is_refused() -> None:
    dataplane = HostDataPlane("test", features=lambda: Features(dsr="this kernel lacks it"))
    try:
        opened = await dataplane.open(CONFIG)
        assert opened.dsr_obstacle == "this kernel lacks it"
        await opened.engine.start()
        groups = {ONE: Group(frozenset({IPv4Address("10.99.0.11")}))}
        await opened.engine.apply(Changes(groups=groups, forwards={WEB: Forward(ONE, 30080)}))
        assert (await opened.engine.observe()).forwards.keys() == {WEB}
        assert await opened.engine.pins() == {}
        assert await opened.engine.returned() == {}
        assert (await opened.engine.counters()).keys() == {WEB}
        assert await opened.engine.member_counters()
        assert "netdev" not in run("ip netns exec lb-test-mgmt nft list tables")
        passed = {TWO: Group(frozenset({MACAddress.parse("02:00:00:00:00:11")}))}
        with pytest.raises(DataPlaneError, match="this kernel can't pass frames on; use mode nat"):
            await opened.engine.apply(Changes(groups=passed, forwards={WEB: Forward(TWO, mode="dsr")}))
    finally:
        await dataplane.remove("")


def test_copies_of_packets_are_needed_by_moves_alone() -> None:
    found = without("dup to")
    assert (found.nat, found.dsr) == ("", "")
    assert "CONFIG_NFT_DUP_IPV4" in found.handover
    assert "connections of mode nat end when an address moves to this host" in found.handover


@pytest.mark.kernel
@pytest.mark.usefixtures("lan")
async def test_without_copies_of_packets_nobody_is_handed_over_to() -> None:
    dataplane = HostDataPlane("test", features=lambda: Features(handover="this kernel lacks it"))
    try:
        opened = await dataplane.open(CONFIG)
        assert opened.handover_obstacle == "this kernel lacks it"
        await opened.engine.start()
        groups = {ONE: Group(frozenset({IPv4Address("10.99.0.11")}))}
        forward = Forward(ONE, 30080)
        handed = replace(forward, predecessor=IPv4Address("10.99.0.3"))
        with pytest.raises(DataPlaneError, match="this kernel can't copy packets; leave it out"):
            await opened.engine.apply(Changes(groups=groups, forwards={WEB: handed}))
        await opened.engine.apply(Changes(groups=groups, forwards={WEB: forward}))
        assert "dup" not in run("ip netns exec lb-test-mgmt nft list ruleset")
    finally:
        await dataplane.remove("")


@pytest.mark.kernel
@pytest.mark.usefixtures("lan")
async def test_without_translation_nothing_is_served_and_it_is_said() -> None:
    dataplane = HostDataPlane("test", features=lambda: Features(nat="this kernel lacks it"))
    try:
        with pytest.raises(DataPlaneError, match="network management: this kernel lacks it"):
            await dataplane.open(CONFIG)
    finally:
        await dataplane.remove("")


def test_scripts_are_run_by_the_library() -> None:
    assert find.__defaults__ == (ruleset.run,)
