"""The host's backend keeps the bridge's contract, with the controller and an agent behind it."""

from collections.abc import AsyncIterator

import pytest

from cloudprovider.core.api.guestcluster import GuestClusterSpec, Quota
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS
from tests.bridge.backend_contract import LOAD_BALANCERS, OTHER, PORTS, TENANT, Harness, TenantBackendContract
from tests.host.world import World, guest_cluster, pool, subnet


class TestHostBackend(TenantBackendContract):
    @pytest.fixture
    async def harness(self, world: World) -> AsyncIterator[Harness]:
        quota = Quota(load_balancers=LOAD_BALANCERS, ports_per_load_balancer=PORTS)
        spec = GuestClusterSpec(quota=quota, node_cidrs=["10.0.0.0/8"], pools=["default"])
        for tenant in (TENANT, OTHER):
            await world.client.create(GUESTCLUSTERS, guest_cluster(tenant, spec))
        await world.client.create(IPPOOLS, pool("default", subnet("192.0.2.0/24")))
        async with world.host() as host, world.agent(host):
            yield Harness(host.backend)
