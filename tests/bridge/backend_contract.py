"""What every TenantBackend must do: subclass TenantBackendContract, with a fixture that makes the backend."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest

from cloudprovider.bridge.api import Hello, QuotaExceeded, Reason, TenantBackend
from cloudprovider.bridge.statelog import Reader
from cloudprovider.core.errors import BridgeError, NotPermitted
from cloudprovider.core.exchange import (
    Inventory,
    InventoryItem,
    Listener,
    LoadBalancerRequest,
    LoadBalancerState,
    ReportedNode,
    ServiceKey,
    Tenant,
)

TENANT = Tenant("tenants", "blue")
OTHER = Tenant("tenants", "green")
HELLO = Hello(cluster_uid="uid-of-kube-system", guest_version="1")
WEB = ServiceKey("default", "web", "uid-1")
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))
PORTS = 10
LOAD_BALANCERS = 30


def keys(count: int) -> list[ServiceKey]:
    return [ServiceKey("default", f"s{i}", f"uid-s{i}") for i in range(count)]


def inventory(*services: ServiceKey, token: int = 1, complete: bool = True, version: str = "5") -> Inventory:
    return Inventory(tuple(InventoryItem(s) for s in services), version, complete, token)


async def nothing(tenant: Tenant, service: ServiceKey) -> None:
    """For a host that does by itself what it should."""


@dataclass(frozen=True)
class Harness:
    """A fresh backend with the tenants TENANT and OTHER (10 ports, 30 load balancers, node CIDR 10.0.0.0/8, pool
    "default"). ``program`` lets the host give and program an address, ``release`` give back the address of a load
    balancer that is marked for deletion."""

    backend: TenantBackend
    program: Callable[[Tenant, ServiceKey], Awaitable[None]] = nothing
    release: Callable[[Tenant, ServiceKey], Awaitable[None]] = nothing


class TenantBackendContract:
    """The tests. A subclass has a fixture ``harness``."""

    @pytest.fixture
    async def backend(self, harness: Harness) -> TenantBackend:
        self.host = harness
        await harness.backend.connect(TENANT, HELLO)
        return harness.backend

    async def program(self, service: ServiceKey) -> None:
        await self.host.program(TENANT, service)

    async def release(self, service: ServiceKey) -> None:
        await self.host.release(TENANT, service)

    async def until(
        self, backend: TenantBackend, service: ServiceKey, wanted: Callable[[LoadBalancerState | None], bool]
    ) -> LoadBalancerState | None:
        """Wait until the service's state in the log is as wanted."""
        log = backend.states(TENANT)
        with Reader(log) as reader:
            async with asyncio.timeout(20):
                while not wanted(log.states.get(service)):
                    await reader.wait()
                    reader.next(1000)
        return log.states.get(service)

    async def given(self, backend: TenantBackend, service: ServiceKey, request: LoadBalancerRequest = REQUEST) -> str:
        await backend.ensure(TENANT, service, request, ())
        await self.program(service)
        state = await self.until(backend, service, lambda s: s is not None and bool(s.addresses))
        assert state is not None
        return str(state.addresses[0].ip)

    async def test_policy_shows_the_binding_at_once(self, backend: TenantBackend) -> None:
        policy = backend.policy(TENANT)
        assert policy is not None
        assert policy.cluster_uid == HELLO.cluster_uid
        assert backend.policy(Tenant("tenants", "nobody")) is None

    async def test_connect_again_is_fine_and_a_clone_is_refused(self, backend: TenantBackend) -> None:
        welcome = await backend.connect(TENANT, HELLO)
        assert welcome.tenant == TENANT
        assert welcome.max_ports == PORTS
        with pytest.raises(BridgeError) as e:
            await backend.connect(TENANT, replace(HELLO, cluster_uid="another"))
        assert e.value.reason == Reason.CLUSTER_MISMATCH
        assert not e.value.retryable

    async def test_ensure_gives_an_address_and_repeating_changes_nothing(self, backend: TenantBackend) -> None:
        address = await self.given(backend, WEB)
        revision = backend.states(TENANT).revision
        state = await backend.ensure(TENANT, WEB, REQUEST, (ip_address(address),))
        assert [str(a.ip) for a in state.addresses] == [address]
        assert backend.states(TENANT).revision == revision

    async def test_a_namesake_with_another_uid_gets_its_own(self, backend: TenantBackend) -> None:
        first = await self.given(backend, WEB)
        second = await self.given(backend, replace(WEB, uid="uid-2"))
        assert first != second

    async def test_tenants_do_not_see_each_other(self, backend: TenantBackend) -> None:
        await self.given(backend, WEB)
        assert not backend.states(OTHER).states
        await backend.connect(OTHER, HELLO)
        await backend.delete(OTHER, WEB)
        await backend.report_inventory(OTHER, inventory())
        assert WEB in backend.states(TENANT).states

    async def test_delete_tells_when_it_is_gone(self, backend: TenantBackend) -> None:
        await self.given(backend, WEB)
        await backend.delete(TENANT, WEB)
        await self.release(WEB)
        await self.until(backend, WEB, lambda s: s is None)

    async def test_delete_of_nothing_is_told_as_removed(self, backend: TenantBackend) -> None:
        log = backend.states(TENANT)
        revision = log.revision
        await backend.delete(TENANT, WEB)
        assert WEB in [key for _, key in log.changes_since(revision)]

    async def test_shown_address_is_taken_back(self, backend: TenantBackend) -> None:
        address = await self.given(backend, WEB)
        await backend.delete(TENANT, WEB)
        await self.release(WEB)
        await self.until(backend, WEB, lambda s: s is None)
        await backend.ensure(TENANT, WEB, REQUEST, (ip_address(address),))
        await self.program(WEB)
        state = await self.until(backend, WEB, lambda s: s is not None and bool(s.addresses))
        assert state is not None
        assert str(state.addresses[0].ip) == address

    async def test_bounds(self, backend: TenantBackend) -> None:
        many = tuple(Listener(f"p{i}", "TCP", i, 30000 + i) for i in range(1, PORTS + 2))
        with pytest.raises(NotPermitted) as refused:
            await backend.ensure(TENANT, WEB, replace(REQUEST, listeners=many), ())
        assert refused.value.violations[0].field == "spec.ports"
        for key in keys(LOAD_BALANCERS):
            await backend.ensure(TENANT, key, REQUEST, ())
        with pytest.raises(QuotaExceeded) as full:
            await backend.ensure(TENANT, WEB, REQUEST, ())
        assert full.value.subject == "loadBalancers"
        await backend.ensure(TENANT, keys(1)[0], REQUEST, ())

    async def test_a_pool_that_is_not_the_tenants(self, backend: TenantBackend) -> None:
        with pytest.raises(NotPermitted) as e:
            await backend.ensure(TENANT, WEB, replace(REQUEST, ip_pool="others"), ())
        assert "ip-pool" in e.value.violations[0].field

    async def test_nodes_outside_are_rejected_and_the_others_used(self, backend: TenantBackend) -> None:
        nodes = [ReportedNode("n1", (ip_address("10.0.0.1"),)), ReportedNode("n2", (ip_address("172.16.0.1"),))]
        rejected = await backend.report_nodes(TENANT, nodes)
        assert [(r.name, r.address, r.reason) for r in rejected] == [("n2", "172.16.0.1", "OutsideNodeCIDRs")]

    async def test_inventory_deletes_what_is_not_in_it(self, backend: TenantBackend) -> None:
        first, second = keys(2)
        await self.given(backend, first)
        await self.given(backend, second)
        assert (await backend.report_inventory(TENANT, inventory(complete=False))).deleted == ()
        result = await backend.report_inventory(TENANT, inventory(first))
        assert result.deleted == (second,)
        await self.release(second)
        await self.until(backend, second, lambda s: s is None)
        assert first in backend.states(TENANT).states

    async def test_a_suddenly_small_inventory_waits_for_a_second(self, backend: TenantBackend) -> None:
        services = keys(LOAD_BALANCERS)
        for key in services:
            await self.given(backend, key)
        result = await backend.report_inventory(TENANT, inventory(services[0], version="7"))
        assert result.deleted == ()
        assert result.held_back == LOAD_BALANCERS - 1
        result = await backend.report_inventory(TENANT, inventory(services[0], version="8"))
        assert len(result.deleted) == LOAD_BALANCERS - 1

    async def test_an_older_leader_is_refused(self, backend: TenantBackend) -> None:
        await backend.report_inventory(TENANT, inventory(token=3))
        with pytest.raises(BridgeError) as e:
            await backend.report_inventory(TENANT, inventory(token=2))
        assert e.value.reason == Reason.STALE_LEADER

    async def test_source_ranges_and_policies_are_kept_apart(self, backend: TenantBackend) -> None:
        request = replace(
            REQUEST,
            sources=(ip_network("203.0.113.0/24"),),
            external_traffic_policy="Local",
            endpoint_nodes=("n1",),
            health_check_node_port=31000,
            affinity_seconds=60,
        )
        assert await self.given(backend, WEB, request)
        assert await self.given(backend, WEB, REQUEST)
