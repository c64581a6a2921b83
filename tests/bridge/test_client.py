"""Both clients, over gRPC and in memory, keep the contract of BridgeClient."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest

from cloudprovider.bridge.api import BridgeClient, Connected, Hello, QuotaExceeded, Reason, StateChange
from cloudprovider.bridge.fake import MemoryBackend
from cloudprovider.bridge.local import LocalBridge
from cloudprovider.core.errors import BridgeError, InvalidRequest, NotPermitted, Unavailable, Violation
from cloudprovider.core.exchange import Inventory, InventoryItem, Listener, LoadBalancerRequest, ReportedNode
from cloudprovider.core.reasons import Heard
from tests.bridge.backend_contract import LOAD_BALANCERS, REQUEST, WEB, inventory, keys
from tests.bridge.conftest import HELLO, Bridge
from tests.bridge.tls import TENANT
from tests.bridge.waiting import Watched


@dataclass
class Pair:
    client: BridgeClient
    backend: MemoryBackend


@pytest.fixture(params=["grpc", "memory"])
async def pair(request: pytest.FixtureRequest, bridge: Bridge) -> Pair:
    if request.param == "grpc":
        return Pair(bridge.client(), bridge.backend)
    return Pair(LocalBridge(bridge.backend, TENANT, HELLO), bridge.backend)


@pytest.fixture
async def watched(pair: Pair) -> AsyncIterator[Watched]:
    watched = Watched(pair.client)
    await watched.until(lambda: any(c.synced for c in watched.of(StateChange)))
    yield watched
    await watched.close()


async def test_everything_asked_arrives_as_asked(pair: Pair) -> None:
    request = LoadBalancerRequest(
        listeners=(Listener("a", "TCP", 80, 30080), Listener("b", "UDP", 53, None)),
        ip_pool="default",
        network="default/vlan10",
        scope_project="c-1/p-2",
        scope_namespace="ns",
        addresses=(ip_address("198.18.7.7"), ip_address("2001:db8::7")),
        ip_families=("IPv4", "IPv6"),
        ip_family_policy="RequireDualStack",
        mode="dsr",
        external_traffic_policy="Local",
        endpoint_nodes=("n1", "n2"),
        health_check_node_port=31000,
        affinity_seconds=60,
        sources=(ip_network("203.0.113.0/24"), ip_network("2001:db8::/32")),
    )
    state = await pair.client.ensure(WEB, request)
    assert pair.backend.load_balancers[(TENANT, WEB)].request == request
    assert [str(a.ip) for a in state.addresses] == ["198.18.7.7"]
    assert state == pair.backend.states(TENANT).states[WEB]


async def test_what_a_service_shows_never_keeps_it_out(pair: Pair) -> None:
    """Another controller may have written many addresses of one family."""
    shown = tuple(ip_address(f"198.18.9.{i}") for i in range(1, 40))
    await pair.client.ensure(WEB, REQUEST, shown)
    await pair.client.report_inventory(Inventory((InventoryItem(WEB, shown),), "5", complete=True, fencing_token=1))
    assert pair.backend.load_balancers[(TENANT, WEB)].address == shown[0]


async def test_the_stream_tells_states_and_removals(pair: Pair, watched: Watched) -> None:
    state = await pair.client.ensure(WEB, REQUEST)
    assert await watched.until(lambda: watched.states.get(WEB)) == state
    await pair.client.delete(WEB)
    await watched.until(lambda: WEB in watched.removed)
    assert watched.of(Connected)[0].welcome.tenant == TENANT


async def test_a_new_watch_starts_with_everything(pair: Pair) -> None:
    for key in keys(5):
        await pair.client.ensure(key, REQUEST)
    watched = Watched(pair.client)
    await watched.until(lambda: any(c.synced for c in watched.of(StateChange)))
    assert set(watched.states) == set(keys(5))
    await watched.close()


async def test_refusals_keep_field_and_reason(pair: Pair) -> None:
    with pytest.raises(NotPermitted) as e:
        await pair.client.ensure(WEB, replace(REQUEST, ip_pool="others"))
    violation = e.value.violations[0]
    assert violation.field == "metadata.annotations[cloudprovider.harvesterhci.io/ip-pool]"
    assert violation.reason == "PoolNotPermitted"
    assert "'others'" in violation.message
    pair.backend.failure = InvalidRequest(Violation(field="spec.x", reason=Heard("Odd"), message="it is odd"))
    with pytest.raises(InvalidRequest) as invalid:
        await pair.client.ensure(WEB, REQUEST)
    assert invalid.value.violations == pair.backend.failure.violations
    assert not isinstance(invalid.value, NotPermitted)


async def test_quota(pair: Pair) -> None:
    for key in keys(LOAD_BALANCERS):
        await pair.client.ensure(key, REQUEST)
    with pytest.raises(QuotaExceeded) as e:
        await pair.client.ensure(WEB, REQUEST)
    assert e.value.subject == "loadBalancers"
    assert e.value.retryable
    assert e.value.retry_after == 30.0


async def test_nodes_and_inventory(pair: Pair) -> None:
    rejected = await pair.client.report_nodes(
        [ReportedNode("n1", (ip_address("10.0.0.1"),), "vm-1"), ReportedNode("n2", (ip_address("172.16.0.1"),))]
    )
    assert [r.name for r in rejected] == ["n2"]
    assert [(n.name, n.virtual_machine) for n in pair.backend.nodes[TENANT]] == [("n1", "vm-1")]
    for key in keys(2):
        await pair.client.ensure(key, REQUEST)
    result = await pair.client.report_inventory(inventory(keys(1)[0], token=4))
    assert result.deleted == (keys(2)[1],)
    with pytest.raises(BridgeError) as e:
        await pair.client.report_inventory(inventory(token=3))
    assert e.value.reason == Reason.STALE_LEADER
    assert not e.value.retryable


async def test_a_host_whose_api_server_is_away(pair: Pair) -> None:
    pair.backend.failure = Unavailable("https://host.internal:6443: connection refused")
    with pytest.raises(BridgeError) as e:
        await pair.client.ensure(WEB, REQUEST)
    assert e.value.reason == Reason.UNAVAILABLE
    assert e.value.retryable
    assert "host.internal" not in str(e.value)
    pair.backend.failure = None
    await pair.client.ensure(WEB, REQUEST)


async def test_another_cluster_with_the_same_certificate(pair: Pair, bridge: Bridge) -> None:
    await pair.client.ensure(WEB, REQUEST)
    clone = Hello(cluster_uid="a-clone", guest_version="1")
    local = isinstance(pair.client, LocalBridge)
    other = LocalBridge(bridge.backend, TENANT, clone) if local else bridge.client(hello=clone)
    for attempt in (other.delete(WEB), other.report_inventory(inventory())):
        with pytest.raises(BridgeError) as e:
            await attempt
        assert e.value.reason == Reason.CLUSTER_MISMATCH
        assert not e.value.retryable
    assert (TENANT, WEB) in pair.backend.load_balancers
