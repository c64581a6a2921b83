"""Names: Harvester's scheme (expected values made with its own Go function), and blocks that never share a name."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.naming import block_name, label_value, load_balancer_name

UID = "8f1f0b0e-6b1c-4a4e-9d0e-3a1d7f8c2b55"
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@pytest.mark.parametrize(
    ("cluster", "namespace", "name", "uid", "expected"),
    [
        ("kubernetes", "default", "nginx", UID, "kubernetes-default-nginx-7231d56c"),
        ("rke2-prod", "default", "nginx", UID, "rke2-prod-default-nginx-e97b8066"),
        ("1prod", "default", "web", UID, "a1prod-default-web-195d8f0d"),  # begins with a digit
        ("my.cluster", "web", "front", UID, "amy.cluster-web-front-bcbe38b5"),  # a dot
        ("c" * 64, "d", "s", UID, "a" + "c" * 54 + "16e39e22"),  # longer than a label
        ("c" * 63, "n" * 63, "s" * 63, UID, "c" * 55 + "f5bbe8b6"),
        ("kubernetes", "ingress-nginx", "s" * 63, UID, "kubernetes-ingress-nginx-" + "s" * 30 + "841643f4"),
        (
            "twenty-one-characters",
            "default",
            "s" * 24,
            UID,
            "twenty-one-characters-default-" + "s" * 24 + "-e5cd5e5a",
        ),  # a base of exactly 55
        ("c", "d", "s", "u0", "c-d-s-0296e14a"),  # a digest that begins with 0
    ],
)
def test_load_balancers_are_named_as_harvester_does(
    cluster: str, namespace: str, name: str, uid: str, expected: str
) -> None:
    assert load_balancer_name(cluster, namespace, name, uid) == expected
    assert len(expected) <= 63


def test_a_service_made_again_under_its_name_gets_another_load_balancer() -> None:
    assert load_balancer_name("c", "d", "s", UID) != load_balancer_name("c", "d", "s", UID[::-1])


def test_blocks_are_named_for_people() -> None:
    assert block_name("office", IPv4Address("10.115.1.0")) == "office-10.115.1.0"
    assert block_name("office", IPv6Address("fd00::100")) == "office-fd00-0000-0000-0000-0000-0000-0000-0100"


names = st.from_regex(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", fullmatch=True).filter(
    lambda n: SUBDOMAIN.fullmatch(n) is not None
)
firsts = st.one_of(
    st.integers(0, 2**24 - 1).map(lambda n: IPv4Address(n * 256)),
    st.integers(0, 2**120 - 1).map(lambda n: IPv6Address(n * 256)),
)


@given(names, names, firsts, firsts)
def test_block_names_are_valid_and_unique(
    a: str, b: str, at: IPv4Address | IPv6Address, other: IPv4Address | IPv6Address
) -> None:
    name = block_name(a, at)
    assert len(name) <= 253
    assert SUBDOMAIN.fullmatch(name)
    assert (block_name(b, other) == name) == ((b, other) == (a, at))


def test_pools_with_long_names_stay_apart() -> None:
    first = ip_address("10.0.0.0")
    assert block_name("p" * 252 + "a", first) != block_name("p" * 252 + "b", first)


@given(names)
def test_labels_fit(text: str) -> None:
    value = label_value(text)
    assert len(value) <= 63
    assert re.fullmatch(r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?", value)
    assert value == text or len(text) > 63
