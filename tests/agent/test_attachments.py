"""A network whose device is left out: it stands in the host cluster's NetworkAttachmentDefinition."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Interface

import pytest
from typing_extensions import override

from cloudprovider.agent.attachments import AttachedDataPlane
from cloudprovider.core.api.attachment import NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import DataPlaneError, Unavailable
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.fake import FakeDataPlane, FakeSegment
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import NETWORK_ATTACHMENTS

VLAN8 = NetworkConfig("default/vlan8", "", IPv4Interface("10.0.8.2/24"))


class Recorder(FakeDataPlane):
    """Remembers what was opened."""

    def __init__(self) -> None:
        super().__init__(devices=["mgmt-br"])
        self.opened: list[NetworkConfig] = []

    @override
    async def open(self, config: NetworkConfig) -> FakeSegment:
        self.opened.append(config)
        return await super().open(config)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(lambda: datetime(2026, 1, 1, tzinfo=UTC))


def seed(cluster: FakeCluster, config: dict[str, object]) -> None:
    cluster.seed(
        NETWORK_ATTACHMENTS,
        NetworkAttachmentDefinition(
            metadata=ObjectMeta(namespace="default", name="vlan8"),
            spec=NetworkAttachmentDefinitionSpec(config=json.dumps(config)),
        ),
    )


def attached(cluster: FakeCluster) -> tuple[Recorder, AttachedDataPlane]:
    inner = Recorder()
    return inner, AttachedDataPlane(inner, FakeKubeClient(cluster))


async def test_bridge_and_vlan_are_found_by_the_networks_name(cluster: FakeCluster) -> None:
    seed(cluster, {"type": "bridge", "bridge": "mgmt-br", "vlan": 8})
    inner, dataplane = attached(cluster)
    await dataplane.open(VLAN8)
    assert inner.opened == [replace(VLAN8, device="mgmt-br", vlan=8)]
    assert await dataplane.networks() == ["default/vlan8"]
    await dataplane.remove("default/vlan8")
    assert await dataplane.networks() == []


async def test_a_device_that_is_named_is_not_looked_up(cluster: FakeCluster) -> None:
    async def refuse(_call: object) -> None:
        raise Unavailable("down")

    cluster.before = refuse
    inner, dataplane = attached(cluster)
    config = NetworkConfig("", "mgmt-br")
    await dataplane.open(config)
    assert inner.opened == [config]


async def test_what_is_missing_is_said_and_found_when_it_is_there(cluster: FakeCluster) -> None:
    """A host cluster without the definition (CRD) answers the same way."""
    inner, dataplane = attached(cluster)
    with pytest.raises(
        DataPlaneError, match=r"'default/vlan8' has no device in the networks file, and there is no Net"
    ):
        await dataplane.open(VLAN8)
    assert inner.opened == []
    seed(cluster, {"type": "bridge", "bridge": "mgmt-br", "vlan": 8})
    await dataplane.open(VLAN8)


async def test_what_can_not_be_read_is_an_error_of_the_network(cluster: FakeCluster) -> None:
    seed(cluster, {"type": "macvlan"})
    _, dataplane = attached(cluster)
    with pytest.raises(DataPlaneError, match=r'NetworkAttachmentDefinition default/vlan8 is of type "macvlan"'):
        await dataplane.open(VLAN8)

    async def refuse(_call: object) -> None:
        raise Unavailable("the API server is down")

    cluster.before = refuse
    with pytest.raises(DataPlaneError, match="'default/vlan8' has no device in the networks file: the API server is"):
        await dataplane.open(VLAN8)
