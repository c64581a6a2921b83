"""What an installation needs, judged from facts."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from cloudprovider.core.api.bgp import BGPAdvertisementStatus, BGPAnnouncer, BGPPeer, BGPPeerStatus
from cloudprovider.core.api.guestcluster import CertificateRecord, GuestCluster, GuestClusterStatus
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.installation import certificate, clock, definition, guests, networks, permissions, routers
from cloudprovider.core.permissions import Permission
from tests.core.bgp import objects as bgp

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "verdict", "message"),
    [
        (0.0, "ok", "in step"),
        (0.9, "ok", "in step"),
        (4.0, "ok", "4 s ahead of the API server's"),
        (-30.0, "warning", "30 s behind the API server's"),
        (600.0, "wrong", "600 s ahead of the API server's"),
    ],
)
def test_clocks(seconds: float, verdict: str, message: str) -> None:
    found = clock(NOW + timedelta(seconds=seconds), NOW)
    assert (found.verdict, found.message) == (verdict, message)


def test_a_clock_that_is_not_told() -> None:
    assert clock(NOW, None).verdict == "unknown"


@pytest.mark.parametrize(
    ("begins", "ends", "verdict", "message"),
    [
        (-1, 365, "ok", "valid until 2027-01-01, 365 days"),
        (-300, 29, "warning", "valid until 2026-01-30, 29 days"),
        (-300, -1, "wrong", "has ended on 2025-12-31"),
        (1, 365, "wrong", "is valid only from 2026-01-02 12:00 on: is the clock wrong where it was made?"),
    ],
)
def test_certificates(begins: int, ends: int, verdict: str, message: str) -> None:
    dates = (NOW + timedelta(days=begins), NOW + timedelta(days=ends))
    found = certificate("certificate of the bridge", *dates, NOW, "issue it anew")
    assert (found.verdict, found.message) == (verdict, message)


def schema(**spec: object) -> dict[str, object]:
    return {"properties": {"metadata": {}, "spec": {"properties": spec}}}


LISTENERS = {"type": "array", "items": {"properties": {"port": {}}}}


def test_definitions_are_compared_field_by_field() -> None:
    ours = schema(listeners=LISTENERS, mode={}, labels={"additionalProperties": {"type": "string"}})
    assert definition("LoadBalancer", ours, ours).verdict == "ok"
    older = definition("LoadBalancer", schema(listeners={"type": "array", "items": {}}), ours)
    assert (older.verdict, older.message) == (
        "wrong",
        "of another version: it lacks spec.labels, spec.listeners.port, spec.mode",
    )
    newer = definition("LoadBalancer", schema(**{f"x{i}": {} for i in range(5)}), schema())
    assert (newer.verdict, newer.message) == (
        "warning",
        "of another version, newer or changed: this one does not know spec.x0, spec.x1, spec.x2 and 2 more",
    )
    assert definition("LoadBalancer", None, ours).message == "it is not there"


def test_permissions() -> None:
    may, may_not = Permission("list", "", "nodes"), Permission("list", "apps", "deployments", "a")
    assert permissions({may: True}, "me").verdict == "ok"
    found = permissions({may: True, may_not: False}, "me")
    assert (found.verdict, found.message) == ("warning", "me may not list deployments.apps in a")
    host = "system:serviceaccount:cloudprovider-system:cloudprovider-host"
    assert permissions({may_not: False}, host).verdict == "wrong", "a program that may not do its work"
    assert permissions({may_not: False}, host.replace("-host", "-other")).verdict == "warning"


def test_guests_that_are_silent() -> None:
    def guest(name: str, seen: str) -> GuestCluster:
        status = GuestClusterStatus(last_seen_time=seen, guest_version="0.1.0")
        return GuestCluster(metadata=ObjectMeta(name=name, namespace="ns"), status=status)

    clusters = [guest("a", "2026-01-01T11:59:10Z"), guest("b", "2026-01-01T11:00:00Z"), guest("c", "")]
    assert [(f.name, f.verdict, f.message) for f in guests(clusters, NOW)] == [
        ("guest ns/a", "ok", "heard 50 s ago, version 0.1.0"),
        ("guest ns/b", "warning", "has not called since 2026-01-01T11:00:00Z; what is forwarded goes on"),
        ("guest ns/c", "warning", "has never called"),
    ]


def test_guests_whose_certificate_has_not_been_renewed() -> None:
    def guest(ends: str) -> GuestCluster:
        status = GuestClusterStatus(
            last_seen_time="2026-01-01T11:59:10Z", certificate=CertificateRecord(not_after=ends)
        )
        return GuestCluster(metadata=ObjectMeta(name="a", namespace="ns"), status=status)

    (fine,) = guests([guest("2026-02-01T12:00:00Z")], NOW)
    assert (fine.verdict, fine.message) == ("ok", "heard 50 s ago")
    (late,) = guests([guest("2026-01-31T11:00:00Z")], NOW)
    assert late.verdict == "warning"
    assert "ends at 2026-01-31T11:00:00Z, and has not been renewed" in late.message
    assert "cloudprovider tenant rotate" in late.todo


def test_routers_and_what_is_said_to_them() -> None:
    def router(name: str, *sessions: tuple[str, str, str]) -> BGPPeer:
        told = [{"node": node, "state": state, "error": error, "advertised": 7} for node, state, error in sessions]
        return msgspec.structs.replace(bgp.peer(name), status=msgspec.convert({"sessions": told}, BGPPeerStatus))

    up = ("h1", "Established", "")
    peers = [
        router("d"),
        router("c", up, ("h2", "Refused", "Write the router's.")),
        router("b", ("h2", "Connecting", "It does not answer.")),
        router("a", up),
    ]
    assert [(f.name, f.verdict, f.message) for f in routers(peers, [bgp.advertisement()])] == [
        ("BGP router a", "ok", "1 hosts, 7 addresses said"),
        ("BGP router b", "wrong", "no session on h2 (of 1 hosts); It does not answer."),
        ("BGP router c", "warning", "no session on h2 (of 2 hosts); Write the router's."),
        ("BGP router d", "warning", "no host speaks to it"),
    ]
    told = BGPAdvertisementStatus(hosts=[BGPAnnouncer(node="h1"), BGPAnnouncer(node="h2", problem="No such pool.")])
    (found,) = routers([], [msgspec.structs.replace(bgp.advertisement("x"), status=told)])
    assert (found.name, found.message) == ("BGP advertisement x", "h2: No such pool.")
    (found,) = list(routers(peers[-1:], []))[1:]
    assert found.message == "there is no BGPAdvertisement: routers are told of no address"
    assert list(routers([], [])) == []


def test_networks_of_pools_without_an_agent() -> None:
    found = list(networks({"": ["a"], "default/vlan8": ["b", "c"]}, {"host-1": [""], "host-2": [""]}, ["host-1"]))
    assert [(f.verdict, f.message) for f in found] == [
        ("ok", "the management network: host-1, host-2"),
        ("wrong", "no agent stands on default/vlan8, which the pools b, c are for"),
    ]


def test_hosts_without_a_file() -> None:
    (found,) = networks({}, {"host-1": [""]}, ["host-1", "host-2"])
    assert found.message == "no file for host-2 in the agents' ConfigMap: the agent does not start there"
