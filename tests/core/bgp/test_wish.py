"""What a host says, of its objects; and what of them is wrong."""

from ipaddress import ip_address
from typing import Any

import pytest

from cloudprovider.core.api.bgp import BGPAdvertisement, BGPPeer
from cloudprovider.core.bgp import Attributes, Neighbor, Speech, Watch
from cloudprovider.core.bgpwish import Host, Objects, Outcome, Served, Wish
from cloudprovider.core.bgpwish import wish as decide
from tests.core.bgp.objects import advertisement, host, peer, served, standing

POOLS = {"lan": {"zone": "a"}, "reserved": {}}
BOTH = [peer(), peer("six", "fd00::1")]
VIP, VIP6, OTHER = (ip_address(a) for a in ("10.0.0.100", "fd00::100", "10.0.0.200"))
ADDRESSES = [*served("10.0.0.100", "fd00::100"), *served("10.0.0.200", pool="reserved")]


def wish(
    here: Host,
    peers: list[BGPPeer],
    advertisements: list[BGPAdvertisement],
    addresses: list[Served],
    passwords: dict[str, str] | None = None,
) -> Wish:
    objects = Objects(peers=tuple(peers), advertisements=tuple(advertisements), pools=POOLS, passwords=passwords or {})
    return decide(here, objects, addresses)


def speech(made: Wish) -> Speech:
    return made.speeches[""]


def said(made: Wish, name: str = "tor") -> dict[str, Attributes]:
    found = {str(vip): dict(announcement) for vip, announcement in speech(made).routes.items()}
    return {vip: to[name] for vip, to in found.items() if name in to}


def test_all_addresses_of_pools_are_said_to_all_routers() -> None:
    made = wish(host(), BOTH, [advertisement()], [*ADDRESSES, *served("10.0.0.9", pool="")])
    assert speech(made).neighbors == (
        Neighbor(name="six", address=ip_address("fd00::1"), asn=64513, source=ip_address("fd00::2")),
        Neighbor(name="tor", address=ip_address("10.0.0.1"), asn=64513, source=ip_address("10.0.0.2")),
    )
    assert (speech(made).asn, speech(made).router_id) == (64512, "10.0.0.2")
    assert said(made) == dict.fromkeys(["10.0.0.100", "10.0.0.200"], Attributes())
    assert said(made, "six") == {"fd00::100": Attributes()}
    assert (made.refused, made.outcomes) == ({}, {"all": Outcome(3)})


def test_without_an_advertisement_nothing_is_said() -> None:
    made = wish(host(), [peer()], [], ADDRESSES)
    assert speech(made).routes == {}


def test_pools_are_chosen_by_name_and_by_label() -> None:
    by_name = wish(host(), [peer()], [advertisement(ipPools=["reserved"])], ADDRESSES)
    assert list(said(by_name)) == ["10.0.0.200"]
    chosen = advertisement(ipPoolSelectors=[{"matchLabels": {"zone": "a"}}])
    assert sorted(map(str, speech(wish(host(), BOTH, [chosen], ADDRESSES)).routes)) == ["10.0.0.100", "fd00::100"]
    both = advertisement(ipPools=["reserved"], ipPoolSelectors=[{"matchLabels": {"zone": "a"}}])
    assert len(speech(wish(host(), BOTH, [both], ADDRESSES)).routes) == 3


def test_routers_are_chosen_and_hosts() -> None:
    routers = [peer("a"), peer("b", "10.0.0.3")]
    made = wish(host(), routers, [advertisement(peers=["b"])], ADDRESSES)
    assert (said(made, "a"), len(said(made, "b"))) == ({}, 2)
    elsewhere = [{"matchExpressions": [{"key": "rack", "operator": "In", "values": ["2"]}]}]
    here = host(labels={"rack": "1"})
    left_out = wish(here, [peer(nodeSelectors=elsewhere)], [advertisement(nodeSelectors=elsewhere)], [])
    assert left_out == Wish()
    there = host(labels={"rack": "2"})
    assert wish(there, [peer(nodeSelectors=elsewhere)], [advertisement(nodeSelectors=elsewhere)], []).outcomes


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ({"key": "rack", "operator": "Exists"}, True),
        ({"key": "rack", "operator": "DoesNotExist"}, False),
        ({"key": "rack", "operator": "NotIn", "values": ["1"]}, False),
        ({"key": "row", "operator": "NotIn", "values": ["1"]}, True),
    ],
)
def test_selectors_are_kubernetes_own(expression: dict[str, Any], selected: bool) -> None:
    chosen = peer(nodeSelectors=[{"matchExpressions": [expression]}])
    assert bool(wish(host(labels={"rack": "1"}), [chosen], [], []).speeches) is selected


def test_two_advertisements_of_one_address_are_said_together() -> None:
    one = advertisement("one", communities=["64512:2", "64512:1", "large:1:2:3"], localPref=50)
    two = advertisement("two", communities=["no-export", "64512:1"], localPref=200)
    together = Attributes(
        communities=("64512:1", "64512:2", "no-export"), large_communities=("1:2:3",), local_preference=200
    )
    assert set(said(wish(host(), [peer()], [one, two], ADDRESSES)).values()) == {together}


def test_a_session_s_terms() -> None:
    bfd = {"interval": 100, "multiplier": 5}
    terms: dict[str, Any] = {"peerPort": 1179, "holdTime": "1m", "keepaliveTime": "10s", "bfd": bfd}
    made = wish(host(), [peer(passwordKey="tor", **terms)], [], [], {"tor": "secret"})
    (neighbor,) = speech(made).neighbors
    assert (neighbor.port, neighbor.hold, neighbor.keepalive, neighbor.password) == (1179, 60, 10, "secret")
    assert neighbor.watch == Watch(interval=100, multiplier=5)
    assert "secret" not in repr(made)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"address": "10.0.0"}, 'spec.peerAddress: "10.0.0" is no IP address. Write one, for example 192.0.2.1.'),
        (
            {"address": "fe80::1"},
            "spec.peerAddress fe80::1: is no address that a router is reached by. Write its own on the network.",
        ),
        ({"address": "10.0.0.2"}, "spec.peerAddress 10.0.0.2: is this host's own. Write the router's."),
        (
            {"address": "10.9.0.1"},
            (
                "spec.peerAddress 10.9.0.1: is not on the network (10.0.0.0/24, fd00::/64). Correct it, or set"
                " spec.ebgpMultiHop."
            ),
        ),
        (
            {"network": "default/vlan8"},
            (
                'spec.network: this host does not stand on the network "default/vlan8". Add it to the agent\'s networks'
                " file, or leave this host out by spec.nodeSelectors."
            ),
        ),
        (
            {"passwordKey": "tor"},
            (
                'spec.passwordKey: there is no key "tor" in Secret cloudprovider-system/cloudprovider-bgp. Put the'
                " password there."
            ),
        ),
        (
            {"holdTime": "2s"},
            'spec.holdTime: "2s" is neither "0s" nor from "3s" to "65535s". Write for example "90s".',
        ),
        (
            {"keepaliveTime": "90s"},
            'spec.keepaliveTime: "90s" is not shorter than spec.holdTime. Leave it out: a third.',
        ),
        (
            {"bfd": {}, "ebgpMultiHop": True},
            "spec.bfd: BFD is for a router on the network itself. Leave out bfd, or ebgpMultiHop.",
        ),
    ],
)
def test_a_router_that_can_not_be_spoken_to_is_told(spec: dict[str, Any], told: str) -> None:
    made = wish(host(), [peer(**spec), peer("other", "10.0.0.3")], [], [])
    assert made.refused == {"tor": told}
    assert [n.name for n in speech(made).neighbors] == ["other"], "the others are spoken to all the same"


@pytest.mark.parametrize("password", ["two words", "x" * 81, "pässword", "line\nbreak"])
def test_a_password_that_can_not_be_is_told_but_not_shown(password: str) -> None:
    made = wish(host(), [peer(passwordKey="tor")], [], [], {"tor": password})
    assert made.speeches == {}
    assert "longer than 80 characters, or has a space" in made.refused["tor"]
    assert password not in made.refused["tor"]


def test_of_two_at_one_address_the_first_by_name_is_spoken_to() -> None:
    made = wish(host(), [peer("b"), peer("a")], [], [])
    assert [n.name for n in speech(made).neighbors] == ["a"]
    assert made.refused == {"b": "spec.peerAddress 10.0.0.1: BGPPeer a is of the same router. Delete one of the two."}


def test_a_host_has_one_as_number_on_a_network() -> None:
    made = wish(host(), [peer("a"), peer("b", "10.0.0.3", myASN=64999)], [], [])
    assert made.refused == {
        "b": "spec.myASN 64999: on one network a host has one AS number, and by BGPPeer a it is 64512. Set the same in"
        " both."
    }


def test_what_an_advertisement_names_that_there_is_not_is_told_and_the_rest_is_said() -> None:
    wrong = advertisement(ipPools=["lan", "nopool"], peers=["tor", "nopeer"], communities=["1:2", "1:99999", "x"])
    made = wish(host(), [peer()], [wrong], served("10.0.0.100"))
    assert set(said(made).values()) == {Attributes(communities=("1:2",))}
    assert made.outcomes == {
        "all": Outcome(
            1,
            'spec.ipPools: there is no IPPool "nopool". Correct the name, or make it. spec.peers: there is no BGPPeer'
            ' "nopeer". Correct the name, or make it. spec.communities: "1:99999", "x" is none. Write "64512:100",'
            ' "large:64512:1:2", or one of accept-own, blackhole, graceful-shutdown, no-advertise, no-export, no-peer.',
        )
    }


def test_an_address_of_an_ip_version_that_no_router_is_spoken_to_by_is_not_said() -> None:
    made = wish(host(), [peer()], [advertisement(ipPools=["lan"])], ADDRESSES)
    assert list(said(made)) == ["10.0.0.100"]
    assert made.outcomes["all"] == Outcome(
        1,
        "1 addresses of IPv6 are not said: no router is spoken to by IPv6, and each hears only of its own. Make a"
        " BGPPeer with its other address, too.",
    )


def test_by_ipv6_alone() -> None:
    made = wish(host("fd00::2/64"), [peer(address="fd00::1")], [advertisement()], served("fd00::100"))
    assert list(said(made)) == ["fd00::100"]
    assert ip_address(speech(made).router_id).version == 4
    refused = wish(host("fd00::2/64"), [peer()], [], []).refused["tor"]
    assert refused.startswith("spec.peerAddress 10.0.0.1: this host has no IPv4 address of its own")


def test_networks_are_spoken_on_apart() -> None:
    both = Host(labels={}, networks={"": standing("10.0.0.2/24"), "default/vlan8": standing("10.0.0.2/24")})
    routers = [peer("a"), peer("b", network="default/vlan8", myASN=64999)]
    addresses = [*served("10.0.0.100"), *served("10.0.0.101", network="default/vlan8")]
    made = wish(both, routers, [advertisement()], addresses)
    assert {n: (s.asn, list(map(str, s.routes))) for n, s in made.speeches.items()} == {
        "": (64512, ["10.0.0.100"]),
        "default/vlan8": (64999, ["10.0.0.101"]),
    }
