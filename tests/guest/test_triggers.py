"""Every change that matters to a load balancer reaches the host, one by one and back; nothing else does."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cloudprovider.core.annotations import (
    DRAIN_SECONDS,
    FIXED_ADDRESSES,
    HEALTH_CHECKS,
    HEALTHCHECK,
    IP_POOL,
    IPAM,
    KUBE_VIP_ADDRESSES,
    KUBE_VIP_HOSTNAME,
    MODE,
    NAMESPACE,
    NETWORK,
    PRIMARY_SERVICE,
    PROJECT,
    SOURCE_RANGES,
)
from cloudprovider.core.exchange import HealthCheck, Listener
from tests.guest.world import TENANT, World, in_virtual_time, pass_time

HTTP = {"name": "http", "port": 80, "nodePort": 30080}
LISTENER = Listener("http", "TCP", 80, 30080)
LOCAL = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}
CLIENT_IP = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
RANGE = ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("before", "change", "fields"),
    [
        ({}, {"ports": [HTTP | {"port": 8080}]}, {"listeners": (replace(LISTENER, port=8080),)}),
        ({}, {"ports": [HTTP | {"nodePort": 30081}]}, {"listeners": (replace(LISTENER, node_port=30081),)}),
        ({}, {"ports": [HTTP | {"name": "renamed"}]}, {"listeners": (replace(LISTENER, name="renamed"),)}),
        ({}, {"ports": [HTTP | {"protocol": "UDP"}]}, {"listeners": (replace(LISTENER, protocol="UDP"),)}),
        ({}, {"loadBalancerIP": "192.0.2.9"}, {"addresses": (ip_address("192.0.2.9"),)}),
        ({}, {"ipFamilyPolicy": "PreferDualStack"}, {"ip_family_policy": "PreferDualStack"}),
        ({}, {"ipFamilies": ["IPv4", "IPv6"]}, {"ip_families": ("IPv4", "IPv6")}),
        ({}, {"sessionAffinity": "ClientIP"}, {"affinity_seconds": 10800}),
        (CLIENT_IP, {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, {"affinity_seconds": 5}),
        (CLIENT_IP, {"sessionAffinity": "None", "sessionAffinityConfig": None}, {"affinity_seconds": None}),
        ({}, {"loadBalancerSourceRanges": ["10.0.0.0/8"]}, {"sources": (RANGE,)}),
        ({}, {"externalTrafficPolicy": "Local"}, {"external_traffic_policy": "Local"}),
        (LOCAL, {"healthCheckNodePort": 31001}, {"health_check_node_port": 31001}),
    ],
)
def test_every_change_that_matters_reaches_the_host(
    before: dict[str, Any], change: dict[str, Any], fields: dict[str, Any]
) -> None:
    defaults = {"ports": [HTTP], "ipFamilies": ["IPv4"]} | before
    _changes(before, {"spec": change}, {"spec": {name: defaults.get(name) for name in change}}, fields)


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [
        (MODE, "dsr", {"mode": "dsr"}),
        (DRAIN_SECONDS, "0", {"drain_seconds": 0}),
        (HEALTH_CHECKS[0], "8080", {"health_check": HealthCheck(port=8080)}),
        (IP_POOL, "default", {"ip_pool": "default"}),
        (NETWORK, "default/vlan8", {"network": "default/vlan8"}),
        (PROJECT, "c-a/p-b", {"scope_project": "c-a/p-b"}),
        (NAMESPACE, "shop", {"scope_namespace": "shop"}),
        (SOURCE_RANGES, "10.0.0.0/8", {"sources": (RANGE,)}),
        (IPAM, "dhcp", {"ipam": "dhcp"}),
        (KUBE_VIP_ADDRESSES, "0.0.0.0", {"ipam": "dhcp"}),
        (PRIMARY_SERVICE, "main", {"primary_service": "shop/main"}),
        *((name, "192.0.2.9", {"addresses": (ip_address("192.0.2.9"),)}) for name in FIXED_ADDRESSES),
    ],
)
def test_every_annotation_reaches_the_host(name: str, value: str, fields: dict[str, Any]) -> None:
    _changes({}, {"metadata": {"annotations": {name: value}}}, {"metadata": {"annotations": {name: None}}}, fields)


@pytest.mark.parametrize(
    ("annotations", "name", "value", "fields"),
    [
        (
            {HEALTHCHECK + "port": "8080", HEALTHCHECK + "protocol": "HTTP"},
            *(HEALTHCHECK + "protocol", "HTTPS", {"health_check": HealthCheck(port=8080, protocol="HTTPS")}),
        ),
        ({IPAM: "pool"}, IPAM, "dhcp", {"ipam": "dhcp"}),
        ({IPAM: "dhcp", KUBE_VIP_HOSTNAME: "web"}, IPAM, "pool", {"ipam": "pool", "dhcp_hostname": ""}),
        ({IPAM: "dhcp", KUBE_VIP_HOSTNAME: "web"}, KUBE_VIP_HOSTNAME, "www", {"dhcp_hostname": "www"}),
        ({PRIMARY_SERVICE: "main"}, PRIMARY_SERVICE, "other/main", {"primary_service": "other/main"}),
    ],
)
def test_another_value_of_an_annotation_reaches_the_host(
    annotations: dict[str, str], name: str, value: str, fields: dict[str, Any]
) -> None:
    patch, back = ({"metadata": {"annotations": {name: each}}} for each in (value, annotations[name]))
    _changes({"annotations": annotations}, patch, back, fields)


@in_virtual_time
async def test_a_primary_instead_of_a_pool_is_one_change() -> None:
    """What can't stand together has to change together: one patch, one call."""
    world = World()
    async with world.leading():
        service = await world.served(annotations={IP_POOL: "default"})
        load_balancer = world.backend.load_balancers[TENANT, world.key(service)]
        await world.change(metadata={"annotations": {PRIMARY_SERVICE: "main"}})
        condition = await world.until_reason("NotWithPrimaryService")
        assert "remove this here, or set it on shop/main" in condition.message
        assert (world.calls("ensure"), load_balancer.request.ip_pool) == (1, "default")
        await world.change(metadata={"annotations": {IP_POOL: None}})
        await world.until_true(lambda: world.calls("ensure") == 2)
        assert (load_balancer.request.ip_pool, load_balancer.request.primary_service) == ("", "shop/main")
        await world.until_ready()


def _changes(before: dict[str, Any], patch: dict[str, Any], back: dict[str, Any], fields: dict[str, Any]) -> None:
    """``patch`` on a Service made with ``before`` changes ``fields`` of the request, and nothing else; ``back``
    takes that back. No change costs the guest's API server a request."""

    @in_virtual_time
    async def scenario() -> None:
        world = World()
        async with world.leading():
            service = await world.served(**before)
            load_balancer = world.backend.load_balancers[TENANT, world.key(service)]
            asked = load_balancer.request
            wanted = replace(asked, **fields)
            assert wanted != asked
            await world.change(**patch)
            await world.until_true(lambda: world.calls("ensure") == 2)
            assert load_balancer.request == wanted
            await world.change(**back)
            await world.until_true(lambda: world.calls("ensure") == 3)
            assert load_balancer.request == asked
            await pass_time(5)
            assert (world.writes(), world.calls("ensure")) == (3, 3)

    scenario()


@in_virtual_time
async def test_changes_that_the_nodes_see_to_leave_the_host_alone() -> None:
    world = World()
    async with world.leading():
        await world.served()
        port = {"name": "http", "port": 80, "nodePort": 30080, "targetPort": "other", "appProtocol": "http"}
        await world.change(spec={"ports": [port]}, metadata={"labels": {"a": "b"}, "annotations": {"c": "d"}})
        await pass_time(20)
        assert (world.writes(), world.calls("ensure")) == (3, 1)
