"""Who is there, by the agents' Leases; whose a load balancer is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec
from cloudprovider.core.api.loadbalancer import Holder, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.holding import KnownHosts, Stance, stance
from cloudprovider.core.hosts import (
    NODE_ANNOTATION,
    STANDING_ANNOTATION,
    Host,
    Presence,
    Roster,
    host_of,
    standing_text,
)
from cloudprovider.core.naming import agent_lease_name
from cloudprovider.core.owners import successor

HERE = Presence(mac="02:00:00:00:00:01", addresses=("10.0.0.2",), ready=True)
AWAY = Presence(mac="02:00:00:00:00:02")


def lease(node: str, version: int = 1, networks: dict[str, Presence] | None = None, *, token: int = 1) -> Lease:
    annotations = {
        NODE_ANNOTATION: node,
        STANDING_ANNOTATION: standing_text({"": HERE} if networks is None else networks),
    }
    return Lease(
        metadata=ObjectMeta(name=f"of-{node}", annotations=annotations, resource_version=str(version)),
        spec=LeaseSpec(holder_identity=f"{node}_x", lease_transitions=token),
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_says_how_its_host_stands() -> None:
    networks = {"": HERE, "default/vlan2": AWAY}
    assert host_of(lease("h1", networks=networks, token=7)) == Host("h1", 7, networks)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"networks": 1}', '{"networks": {"": {}}}', json.dumps({"other": 1})])
def test_what_can_t_be_read_is_no_host(text: str) -> None:
    broken = lease("h1")
    broken.metadata.annotations[STANDING_ANNOTATION] = text
    assert host_of(broken) is None


def test_a_lease_that_was_given_up_is_no_host() -> None:
    given_up = Lease(metadata=lease("h1").metadata, spec=LeaseSpec())
    assert host_of(given_up) is None


def test_silence_is_counted_from_the_last_new_version() -> None:
    clock = Clock()
    roster = Roster(clock, duration=15)
    roster.observe(lease("h1", 1))
    clock.now += 10
    roster.observe(lease("h1", 1))  # read again, not renewed
    assert roster.is_fresh("h1")
    clock.now += 6
    assert not roster.is_fresh("h1")
    assert roster.hosts.keys() == {"h1"}
    roster.observe(lease("h1", 2))
    assert roster.is_fresh("h1")
    roster.forget(lease("h1", 2))
    assert not roster.hosts
    assert not roster.is_fresh("h1")


def test_since_when_it_is_there_is_counted_from_its_first_version_or_its_return() -> None:
    clock = Clock()
    roster = Roster(clock, duration=15)
    assert roster.there_for("h1") == 0
    roster.observe(lease("h1", 1))
    clock.now += 10
    roster.observe(lease("h1", 2))
    clock.now += 10
    assert roster.there_for("h1") == 20
    clock.now += 10
    assert roster.there_for("h1") == 0, "silent"
    roster.observe(lease("h1", 3))
    clock.now += 1
    assert roster.there_for("h1") == 1


def test_who_serves_is_ready_on_each_network() -> None:
    roster = Roster(Clock())
    roster.observe(lease("h1", networks={"": HERE, "default/vlan2": AWAY}))
    roster.observe(lease("h2", networks={"": HERE}))
    assert roster.ready([""]) == {"h1", "h2"}
    assert roster.ready(["", "default/vlan2"]) == frozenset()
    assert roster.ready(["other/net"]) == frozenset()
    assert roster.by_mac("default/vlan2", AWAY.mac) == "h1"
    assert roster.by_mac("", AWAY.mac) is None


def test_a_lease_that_comes_to_name_another_host() -> None:
    roster = Roster(Clock())
    roster.observe(lease("h1"))
    metadata = ObjectMeta(name="of-h1", annotations=lease("h2").metadata.annotations, resource_version="2")
    roster.observe(Lease(metadata=metadata, spec=LeaseSpec(holder_identity="h2_x")))
    assert roster.hosts.keys() == {"h2"}


@given(st.text("abcdefghijklmnopqrstuvwxyz.-0123456789", min_size=1, max_size=253))
def test_a_lease_s_name_is_one(node: str) -> None:
    assert len(agent_lease_name("default", node)) <= 253


def balancer(owner: str = "", holder: str = "") -> LoadBalancer:
    held = Holder(node=holder, addresses=["10.0.0.100"]) if holder else None
    return LoadBalancer(
        metadata=ObjectMeta(name="a", namespace="t", uid="u"),
        status=LoadBalancerStatus(owner=owner, holder=held, address_key="k"),
    )


def fellows(alive: str, able: str = "") -> KnownHosts:
    return KnownHosts("me", lambda host: host in alive.split(), lambda _: frozenset((able or alive).split()))


@pytest.mark.parametrize(
    ("owner", "holder", "alive", "expected"),
    [
        ("me", "", "me h2", "hold"),
        ("h2", "", "me h2", "leave"),
        ("me", "me", "me h2", "hold"),
        ("h2", "me", "me h2", "hold"),  # until the record says otherwise
        ("me", "h2", "me h2", "move"),
        ("me", "h2", "me", "ask"),
        ("h2", "h2", "me", "ask"),  # both gone: this host is the only one
        ("h2", "h3", "me h3", "leave"),  # the owner is gone, the holder is not
        ("h3", "h2", "me h3", "leave"),
        ("", "h2", "me h2", "leave"),
        ("gone", "", "me", "hold"),
    ],
)
def test_what_to_do(owner: str, holder: str, alive: str, expected: Stance) -> None:
    assert stance(balancer(owner, holder), [""], fellows(alive)) == expected


@given(st.sets(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1))
def test_of_those_that_are_left_just_one_takes_over(left: set[str]) -> None:
    lb = balancer("gone", "gone")
    taking = [
        host
        for host in left
        if stance(lb, [""], KnownHosts(host, lambda h: h in left, lambda _: frozenset(left))) == "ask"
    ]
    assert taking == [successor("k", left)]
