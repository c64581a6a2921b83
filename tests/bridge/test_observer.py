"""Who looks on hears of every call, at both ends alike, and of certificates."""

from dataclasses import dataclass, field
from datetime import datetime

import pytest
from typing_extensions import override

from cloudprovider.bridge.api import Connected
from cloudprovider.bridge.observer import Unobserved
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import Tenant
from tests.bridge.backend_contract import REQUEST, WEB
from tests.bridge.conftest import Bridge
from tests.bridge.tls import TENANT, Authority
from tests.host.world import eventually


@dataclass
class Seen(Unobserved):
    calls: list[tuple[str, str]] = field(default_factory=list)
    served_calls: list[tuple[Tenant | None, str, str]] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)
    ends: list[datetime] = field(default_factory=list)
    tenants: dict[Tenant, datetime] = field(default_factory=dict)
    open: dict[Tenant, int] = field(default_factory=dict)

    @override
    def called(self, method: str, code: str, seconds: float | None) -> None:
        self.calls.append((method, code))
        self.seconds.append(seconds)

    @override
    def served(self, tenant: Tenant | None, method: str, code: str, seconds: float | None) -> None:
        self.served_calls.append((tenant, method, code))
        self.seconds.append(seconds)

    @override
    def shown(self, tenant: Tenant, not_after: datetime) -> None:
        self.tenants[tenant] = not_after

    @override
    def certified(self, not_after: datetime) -> None:
        self.ends.append(not_after)

    @override
    def streams(self, open_streams: object) -> None:
        assert isinstance(open_streams, dict)
        self.open = open_streams


async def observed(bridge: Bridge) -> Seen:
    """The bridge, started anew with somebody who looks on."""
    await bridge.stop()
    seen = Seen()
    bridge.observer = seen
    await bridge.start()
    return seen


async def test_calls_are_told_at_both_ends_with_their_end(bridge: Bridge) -> None:
    host, guest = await observed(bridge), Seen()
    client = bridge.client(observer=guest)
    await client.ensure(WEB, REQUEST)
    bridge.backend.set_tenant(TENANT, None)
    with pytest.raises(BridgeError):
        await client.ensure(WEB, REQUEST)
    expected = ["FAILED_PRECONDITION", "OK", "OK"]
    methods = ["EnsureLoadBalancer", "Connect", "EnsureLoadBalancer"]
    assert guest.calls[:3] == list(zip(methods, expected, strict=True))
    assert host.served_calls[:3] == [(TENANT, m, c) for m, c in zip(methods, expected, strict=True)]
    refused = guest.calls[3][1]
    assert refused not in ("OK", "CANCELLED")
    await eventually(lambda: len(host.served_calls) == 4)
    assert host.served_calls[3] == (None, "EnsureLoadBalancer", refused), "nobody that is known"
    assert all(seconds is not None and 0 <= seconds < 10 for seconds in (*guest.seconds, *host.seconds))


async def test_a_stream_is_told_while_it_is_open_and_when_it_ends(bridge: Bridge) -> None:
    host, guest = await observed(bridge), Seen()
    watched = bridge.watch(bridge.client(observer=guest))
    await eventually(lambda: bool(watched.of(Connected)))
    assert host.open == {TENANT: 1}
    assert ("WatchLoadBalancers", "OK") not in guest.calls
    await bridge.stop()
    await eventually(lambda: any(method == "WatchLoadBalancers" for method, _ in guest.calls))
    assert ("WatchLoadBalancers", "UNAVAILABLE") in guest.calls
    assert not host.open
    (told,) = (call for call in host.served_calls if call[1] == "WatchLoadBalancers")
    assert told == (TENANT, "WatchLoadBalancers", "UNAVAILABLE")
    assert None in guest.seconds


async def test_certificates_are_told_with_their_end(bridge: Bridge) -> None:
    host, guest = await observed(bridge), Seen()
    client = bridge.client(observer=guest)
    await client.connect()
    assert len(host.ends) == len(guest.ends) == 1
    assert host.tenants == {TENANT: guest.ends[0]}


async def test_a_stranger_is_told_as_nobody(bridge: Bridge) -> None:
    host = await observed(bridge)
    foreign = Authority.make(bridge.authority.folder / "foreign")
    strange = foreign.write("client", foreign.client(), ca=bridge.authority.ca)
    with pytest.raises(BridgeError):
        await bridge.client(strange).connect()
    assert not host.tenants
    assert not [call for call in host.served_calls if call[0] is not None]
