"""Scenarios of an operator's pools, judged by the webhook as manifests/ register it: why a Service waits, what holds a
pool, what its growth brings."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from e2e.scenario import READY, WEB, Scenario
from e2e.test_addresses import small_pool
from tests.lab.client import ApiError, Object
from tests.lab.lab import TENANT_NAMESPACE, Pool
from tests.lab.process import wait_for
from tests.lab.programs import POOLS_PATH
from tests.lab.workload import POOL_ANNOTATION, PREFIX, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]


def refused(change: Callable[[], object]) -> str:
    """What the API server says to a change that the webhook refuses."""
    with pytest.raises(ApiError) as caught:
        change()
    assert 'admission webhook "ippools.cloudprovider.harvesterhci.io" denied the request' in str(caught.value)
    return str(caught.value)


def ranges(pool: Pool, first: str, last: str) -> Object:
    return {"spec": {"ranges": replace(pool, first=first, last=last).manifest()["spec"]["ranges"]}}


def test_a_pool_in_use_is_not_taken_from_under_its_holders_and_grows_for_who_waits(scenario: Scenario) -> None:
    guest, host = scenario.guest, scenario.world.api("host")
    with small_pool(scenario) as pool:
        path, third = f"{POOLS_PATH}/{pool.name}", str(IPv4Address(pool.last) + 1)
        for name in ("one", "two"):
            guest.expose(service(name, [WEB], annotations={POOL_ANNOTATION: pool.name}))
        held = {guest.wait_address(name): name for name in ("one", "two")}
        assert held.keys() == {pool.first, pool.last}
        guest.expose(service("three", [WEB], annotations={POOL_ANNOTATION: pool.name}))
        message = scenario.wait_said("three", "PoolExhausted")
        assert message.startswith('all 2 IPv4 addresses of the pool "small" are allocated')

        said = refused(lambda: host.patch(path, ranges(pool, pool.last, pool.last)))
        holder = f"{TENANT_NAMESPACE}/shop-{guest.namespace}-{held[pool.first]}-"
        assert f"spec.ranges: this takes out what is in use: {pool.first} ({holder}" in said
        said = refused(lambda: host.delete(path))
        assert f'the pool "{pool.name}" is in use: {pool.first} ({holder}' in said
        over = replace(pool, name="over", first=pool.last, last=third, guest_cluster="another")
        said = refused(lambda: host.create(POOLS_PATH, over.manifest()))
        assert f'spec.ranges: {pool.last} is in the pool "{pool.name}" on this network too' in said

        host.patch(path, ranges(pool, pool.first, third))
        assert guest.wait_address("three", timeout=10) == third
        guest.delete(held[pool.first])
        guest.wait_deleted(held[pool.first])
        host.patch(path, ranges(pool, pool.last, third))


def test_why_a_service_waits_is_told_pool_by_pool(scenario: Scenario) -> None:
    """In ``kubectl describe service`` and in the host's condition; a pool that is another tenant's is only counted."""
    guest, world = scenario.guest, scenario.world
    host = world.api("host")
    others = Pool("others", "10.77.97.1", "10.77.97.9", guest_cluster="another", namespace="elsewhere").on(
        world.network
    )
    host.create(POOLS_PATH, others.manifest())
    try:
        guest.expose(service("web", [WEB], annotations={f"{PREFIX}network": "default/nowhere"}))
        said = scenario.wait_said("web", "NoPoolMatches")
        for pool in ("lan", "reserved"):
            why = (
                'it is on the management network, the request is for the network "default/nowhere": ask for the pool\'s'
            )
            assert f'pool "{pool}": {why} network' in said
        assert "others" not in said
        closed = len(host.items(POOLS_PATH)) - 2  # those of scenarios before stay
        others_are = "other pool is" if closed == 1 else "other pools are"
        assert said.endswith(f"; {closed} {others_are} not open to this cluster")

        def described() -> bool:
            return said in world.kubectl("guest", "-n", guest.namespace, "describe", "service", "web")

        wait_for("kubectl describe service to say it", described)
        balancers = host.items("/apis/loadbalancer.harvesterhci.io/v1beta1/loadbalancers")
        (status,) = (b["status"] for b in balancers if b["spec"]["service"]["namespace"] == guest.namespace)
        (allocated,) = (c for c in status["conditions"] if c["type"] == "Allocated")
        assert (allocated["status"], allocated["reason"], allocated["message"]) == ("False", "NoPoolMatches", said)

        scenario.guest.annotate("web", ip_pool=others.name, network=None)
        said = scenario.wait_said("web", "PoolNotFound")
        assert said.startswith(f'there is no pool "{others.name}" open to this cluster: name one of lan, reserved, or')
        scenario.guest.annotate("web", ip_pool=None)  # what the message said would change it
        assert world.pool_holds("lan", guest.wait_address("web"))
        wait_for("the condition", lambda: guest.condition("web", READY)["status"] == "True")
    finally:
        guest.empty()
        host.delete(f"{POOLS_PATH}/{others.name}")
