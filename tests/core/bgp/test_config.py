"""FRR's configuration as whole texts, and the commands from one to another."""

from dataclasses import replace
from ipaddress import ip_address

import msgspec

from cloudprovider.core.bgp import Attributes, Neighbor, Speech
from cloudprovider.core.bgpconfig import commands, config, parse, text

PLAIN = Attributes()
MARKED = Attributes(communities=("64512:100", "no-export"), large_communities=("1:2:3",), local_preference=200)
TOR = Neighbor(name="tor", address=ip_address("10.0.0.1"), asn=64513, source=ip_address("10.0.0.2"))
FAR = Neighbor(
    name="far",
    address=ip_address("fd01::1"),
    asn=64514,
    source=ip_address("fd00::2"),
    port=1179,
    hold=9,
    keepalive=3,
    password="secret",  # noqa: S106 - none
    multi_hop=True,
)
ONE, TWO, SIX = (ip_address(a) for a in ("10.0.0.100", "10.0.0.101", "fd00::100"))
SPEECH = Speech(
    asn=64512,
    router_id="10.0.0.2",
    next_hops={4: ip_address("10.0.0.2"), 6: ip_address("fd00::2")},
    neighbors=(TOR, FAR),
    routes={
        ONE: (("far", MARKED), ("tor", PLAIN)),
        TWO: (("tor", PLAIN),),
        SIX: (("far", MARKED), ("tor", PLAIN)),
    },
)
GOLDEN = """\
route-map cp-deny deny 10
exit
!
route-map cp-mark-{one} permit 10
 set tag {one}
exit
!
route-map cp-mark-{two} permit 10
 set tag {two}
exit
!
route-map cp-out-{tor} permit 10
 match tag {one}
 set ip next-hop 10.0.0.2
 set ipv6 next-hop global fd00::2
exit
!
route-map cp-out-{tor} permit 20
 match tag {two}
 set ip next-hop 10.0.0.2
 set ipv6 next-hop global fd00::2
exit
!
route-map cp-out-{far} permit 10
 match tag {one}
 set community 64512:100 no-export
 set large-community 1:2:3
 set local-preference 200
 set ip next-hop 10.0.0.2
 set ipv6 next-hop global fd00::2
exit
!
router bgp 64512
 bgp router-id 10.0.0.2
 no bgp default ipv4-unicast
 no bgp network import-check
 neighbor 10.0.0.1 remote-as 64513
 neighbor 10.0.0.1 description tor
 neighbor 10.0.0.1 update-source 10.0.0.2
 neighbor 10.0.0.1 timers 30 90
 neighbor 10.0.0.1 timers connect 5
 neighbor fd01::1 remote-as 64514
 neighbor fd01::1 description far
 neighbor fd01::1 port 1179
 neighbor fd01::1 password secret
 neighbor fd01::1 ebgp-multihop 255
 neighbor fd01::1 update-source fd00::2
 neighbor fd01::1 timers 3 9
 neighbor fd01::1 timers connect 5
 !
 address-family ipv4 unicast
  network 10.0.0.100/32 route-map cp-mark-{one}
  network 10.0.0.101/32 route-map cp-mark-{two}
  neighbor 10.0.0.1 route-map cp-deny in
  neighbor 10.0.0.1 route-map cp-out-{tor} out
  neighbor 10.0.0.1 activate
 exit-address-family
 !
 address-family ipv6 unicast
  network fd00::100/128 route-map cp-mark-{one}
  neighbor fd01::1 route-map cp-deny in
  neighbor fd01::1 route-map cp-out-{far} out
  neighbor fd01::1 activate
 exit-address-family
exit
!
"""
NAMES = {"one": "1273444182", "two": "3904160030", "tor": "e2e0bf1c", "far": "c536af8d"}


def change(before: Speech | None, after: Speech | None) -> list[str]:
    return commands(config(before), config(after))


def test_the_whole_text() -> None:
    assert text(config(SPEECH)) == GOLDEN.format(**NAMES)


def test_what_frr_shows_is_read_again() -> None:
    header = "frr version 8.4.4\nfrr defaults traditional\n!\nhostname host\n!\nbgp no-rib\n"
    assert parse(header + text(config(SPEECH))) == config(SPEECH)
    assert parse(header) == {}
    assert change(SPEECH, SPEECH) == []


def test_another_address_is_one_line() -> None:
    more = replace(SPEECH, routes={**SPEECH.routes, ip_address("10.0.0.102"): SPEECH.routes[TWO]})
    inside = [f"network 10.0.0.102/32 route-map cp-mark-{NAMES['two']}"]
    where = ["router bgp 64512", "address-family ipv4 unicast"]
    assert change(SPEECH, more) == [*where, *inside, "exit-address-family", "exit"]
    assert change(more, SPEECH) == [*where, "no network 10.0.0.102/32", "exit-address-family", "exit"]


def test_what_is_said_of_an_address_changes_without_a_moment_in_between() -> None:
    """The new route maps come first, one line puts each in place, the old ones go last."""
    other = replace(SPEECH, routes={ONE: (("tor", MARKED),), TWO: SPEECH.routes[TWO]})
    said = change(SPEECH, other)
    router = said.index("router bgp 64512")
    assert all(line.startswith(("route-map cp-", "match ", "set ", "exit")) for line in said[:router])
    end = len(said) - said[::-1].index("exit")
    assert said[end:]
    assert all(line.startswith("no route-map cp-") for line in said[end:])
    inside = said[router:end]
    assert not [line for line in inside if line.startswith("no ") and "network fd00::100" not in line]
    assert sum("network 10.0.0.100/32" in line for line in inside) == 1
    assert sum("route-map" in line and line.startswith("neighbor 10.0.0.1") for line in inside) == 1
    assert not [line for line in inside if "network 10.0.0.101" in line], "nothing is said again"


def test_a_session_whose_terms_change_begins_anew_and_the_others_stay() -> None:
    other = replace(SPEECH, neighbors=(TOR, replace(FAR, password="another")))  # noqa: S106 - none
    said = change(SPEECH, other)
    assert said[:2] == ["router bgp 64512", "no neighbor fd01::1"]
    assert "neighbor fd01::1 password another" in said
    assert not [line for line in said if "10.0.0.1 " in line]
    fewer = replace(SPEECH, neighbors=(TOR,), routes={TWO: SPEECH.routes[TWO]})
    assert "no neighbor fd01::1" in change(SPEECH, fewer)
    assert not [line for line in change(SPEECH, fewer) if "neighbor fd01::1 " in line]


def test_graceful_shutdown_is_one_line() -> None:
    leaving = replace(SPEECH, graceful=True)
    assert change(SPEECH, leaving) == ["router bgp 64512", "bgp graceful-shutdown", "exit"]
    assert change(leaving, SPEECH) == ["router bgp 64512", "no bgp graceful-shutdown", "exit"]


def test_another_as_number_is_another_router() -> None:
    said = change(SPEECH, replace(SPEECH, asn=64999))
    assert said[0] == "no router bgp 64512"
    assert "router bgp 64999" in said
    gone = change(SPEECH, None)
    assert gone[0] == "no router bgp 64512"
    assert all(line.startswith("no route-map cp-") for line in gone[1:])
    assert change(None, None) == []


def test_ten_thousand_addresses_are_as_many_lines() -> None:
    many = replace(SPEECH, routes={ip_address(int(ONE) + n): SPEECH.routes[TWO] for n in range(10_000)})
    (family,) = (lines for path, lines in config(many).items() if path[1:] == ("address-family ipv4 unicast",))
    assert len(family) == 10_000 + 3
    assert len(config(many)) == 6
    assert msgspec.json.encode(commands(config(many), config(many))) == b"[]"
