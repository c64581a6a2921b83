"""The backend in memory keeps the contract, with and without a host that does things by itself."""

from ipaddress import ip_network

import pytest

from cloudprovider.bridge.fake import MemoryBackend, MemoryTenant
from cloudprovider.core.exchange import ServiceKey, Tenant
from tests.bridge.backend_contract import LOAD_BALANCERS, OTHER, PORTS, TENANT, Harness, TenantBackendContract


def memory(*, automatic: bool) -> MemoryBackend:
    backend = MemoryBackend(automatic=automatic)
    bounds = MemoryTenant(load_balancers=LOAD_BALANCERS, ports=PORTS, node_cidrs=(ip_network("10.0.0.0/8"),))
    backend.set_tenant(TENANT, bounds)
    backend.set_tenant(OTHER, bounds)
    return backend


class TestAutomatic(TenantBackendContract):
    @pytest.fixture
    def harness(self) -> Harness:
        return Harness(memory(automatic=True))


class TestByHand(TenantBackendContract):
    @pytest.fixture
    def harness(self) -> Harness:
        backend = memory(automatic=False)

        async def program(tenant: Tenant, service: ServiceKey) -> None:
            backend.program(tenant, service)

        async def release(tenant: Tenant, service: ServiceKey) -> None:
            backend.release(tenant, service)

        return Harness(backend, program, release)
