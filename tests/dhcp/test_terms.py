"""What is accepted from a server, and who the client is."""

import math
import random
import uuid
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from cloudprovider.dhcp.identity import client_identity, hardware_address
from cloudprovider.dhcp.message import Message, Option
from cloudprovider.dhcp.terms import INFINITE, InvalidTerms, Terms, read_terms
from tests.dhcp.test_packet import OFFER

SERVER = IPv4Address("10.0.0.1")


class Latest(random.Random):
    """No fuzz: T1 as late as it may be."""

    @override
    def random(self) -> float:
        return 0.0


def seconds(value: int) -> bytes:
    return value.to_bytes(4, "big")


def offer(*, address: str = "10.0.0.5", **options: bytes | None) -> Message:
    """The offer with some options changed, by name; None takes one out."""
    merged = dict(OFFER.options)
    for name, value in options.items():
        merged.pop(Option[name], None)
        if value is not None:
            merged[Option[name]] = value
    return replace(OFFER, yiaddr=IPv4Address(address), options=merged)


def read(message: Message) -> Terms:
    return read_terms(message, sent=100.0, server_mac=b"server", rng=Latest())


def test_terms_are_what_the_server_says_counted_from_the_request() -> None:
    assert read(offer(RENEWAL_TIME=seconds(1000), REBINDING_TIME=seconds(2000))) == Terms(
        address=IPv4Address("10.0.0.5"),
        prefix_length=24,
        gateway=IPv4Address("10.0.0.254"),
        server=SERVER,
        server_mac=b"server",
        acquired=100,
        renew=1100,
        rebind=2100,
        expires=3700,
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (None, None, (1800, 3150)),
        (seconds(600), None, (600, 3150)),
        (None, seconds(2400), (1800, 2400)),
        (seconds(3000), seconds(2000), (1800, 2000)),
        (seconds(5000), seconds(6000), (1800, 3150)),
        (seconds(0), seconds(0), (1800, 3150)),
        (seconds(INFINITE), seconds(INFINITE), (1800, 3150)),
        (None, seconds(900), (1800, 3150)),
    ],
)
def test_t1_and_t2_make_sense_or_are_the_defaults(
    first: bytes | None, second: bytes | None, expected: tuple[float, float]
) -> None:
    terms = read(offer(RENEWAL_TIME=first, REBINDING_TIME=second))
    assert (terms.renew - 100, terms.rebind - 100) == expected


@given(st.integers(1, INFINITE), st.integers(0, INFINITE), st.integers(0, INFINITE), st.integers())
def test_times_are_always_in_order(duration: int, first: int, second: int, seed: int) -> None:
    message = offer(LEASE_TIME=seconds(duration), RENEWAL_TIME=seconds(first), REBINDING_TIME=seconds(second))
    terms = read_terms(message, sent=0.0, server_mac=b"", rng=random.Random(seed))
    if duration == INFINITE:
        assert (terms.renew, terms.rebind, terms.expires) == (math.inf, math.inf, math.inf)
    else:
        assert 0 < terms.renew < terms.rebind < terms.expires == duration


def test_leases_of_one_moment_do_not_renew_at_one_moment() -> None:
    rng = random.Random(1)
    times = [read_terms(OFFER, sent=0.0, server_mac=b"", rng=rng).renew for _ in range(300)]
    assert 1800 * 0.95 <= min(times) < 1720
    assert 1790 < max(times) <= 1800


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (offer(SUBNET_MASK=None), "no subnet mask"),
        (offer(SUBNET_MASK=IPv4Address("255.0.255.0").packed), "255.0.255.0"),
        (offer(SUBNET_MASK=bytes(4)), "0.0.0.0"),
        (offer(LEASE_TIME=None), "no lease time"),
        (offer(LEASE_TIME=bytes(4)), "no lease time"),
        (offer(SERVER_IDENTIFIER=None), "no server identifier"),
        (offer(SERVER_IDENTIFIER=bytes(4)), "no server identifier"),
        (offer(address="0.0.0.0"), "not one that a host can have"),
        (offer(address="127.0.0.1"), "not one that a host can have"),
        (offer(address="224.0.0.5"), "not one that a host can have"),
        (offer(address="255.255.255.255"), "not one that a host can have"),
        (offer(address="10.0.0.0"), "network or broadcast address"),
        (offer(address="10.0.0.255"), "network or broadcast address"),
    ],
)
def test_an_offer_that_nobody_can_live_by_is_refused(message: Message, says: str) -> None:
    with pytest.raises(InvalidTerms, match=says):
        read(message)


def test_a_subnet_of_two_and_of_one_has_no_broadcast_address() -> None:
    for mask, length in (("255.255.255.254", 31), ("255.255.255.255", 32)):
        terms = read(offer(address="10.0.0.4", SUBNET_MASK=IPv4Address(mask).packed))
        assert terms.prefix_length == length


def test_the_gateway_is_the_first_router_that_can_be_one() -> None:
    routers = bytes(4) + IPv4Address("10.0.0.5").packed + IPv4Address("10.0.0.9").packed
    assert read(offer(ROUTER=routers)).gateway == IPv4Address("10.0.0.9")
    assert read(offer(ROUTER=None)).gateway is None


def test_an_owner_is_the_same_client_on_every_host() -> None:
    owner = "7f6c0b1e-6e0a-4f0e-9d5a-1f2b3c4d5e6f"
    one = client_identity(owner)
    assert one == client_identity(owner)
    # What servers have on record must not change with our version.
    assert one.client_id.hex() == CLIENT_ID
    assert hardware_address(owner) == one.chaddr.hex(":") == MAC
    assert one.client_id[0] == 255
    assert one.client_id[5:7] == b"\x00\x04"
    assert uuid.UUID(bytes=one.client_id[7:]) == uuid.UUID(owner)


CLIENT_ID = "ff4834078600047f6c0b1e6e0a4f0e9d5a1f2b3c4d5e6f"
MAC = "ba:d0:64:f6:62:e7"


@given(st.sets(st.text(min_size=1), min_size=2, max_size=20))
def test_owners_are_different_clients_of_local_unicast_addresses(owners: set[str]) -> None:
    identities = {client_identity(owner) for owner in owners}
    assert len({i.client_id for i in identities}) == len({i.chaddr for i in identities}) == len(owners)
    for each in identities:
        assert each.chaddr[0] & 0b11 == 0b10
        assert len(each.client_id) == 1 + 4 + 2 + 16
        assert uuid.UUID(bytes=each.client_id[7:]).variant == uuid.RFC_4122
