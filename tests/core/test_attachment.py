"""Harvester's networks, as its users make them."""

import json

import pytest

from cloudprovider.core.api.attachment import NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.attachment import BridgeNetwork, bridge_network
from cloudprovider.core.errors import ConfigurationError


def attachment(config: str) -> NetworkAttachmentDefinition:
    return NetworkAttachmentDefinition(
        metadata=ObjectMeta(namespace="default", name="vlan8"), spec=NetworkAttachmentDefinitionSpec(config=config)
    )


def bridge(**keys: object) -> str:
    return json.dumps(
        {"cniVersion": "0.3.1", "name": "vlan8", "type": "bridge", "bridge": "mgmt-br", "promiscMode": True, "ipam": {}}
        | keys
    )


@pytest.mark.parametrize(("keys", "vlan"), [({"vlan": 8}, 8), ({}, 0), ({"vlan": 0}, 0), ({"vlan": 4094}, 4094)])
def test_a_bridge_with_a_vlan_or_none(keys: dict[str, object], vlan: int) -> None:
    assert bridge_network(attachment(bridge(**keys))) == BridgeNetwork("mgmt-br", vlan)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "no CNI configuration of a bridge"),
        ("{", "no CNI configuration of a bridge"),
        ("[]", "no CNI configuration of a bridge"),
        (bridge(vlan="8"), "no CNI configuration of a bridge"),
        (json.dumps({"type": "kube-ovn", "server_socket": "/run/x"}), 'is of type "kube-ovn", not a bridge'),
        (json.dumps({"cniVersion": "0.3.1", "plugins": [{"type": "bridge"}]}), 'is of type ""'),
        (bridge(bridge=""), "not a bridge with a name"),
        (bridge(vlanTrunk=[{"minID": 1, "maxID": 9}]), "is a trunk of several VLANs"),
        (bridge(vlan=4095), "VLAN 4095 is not between 1 and 4094"),
        (bridge(vlan=-1), "VLAN -1 is not between"),
    ],
)
def test_other_networks_are_refused_by_name(config: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        bridge_network(attachment(config))
    assert said in str(error.value)
    assert "NetworkAttachmentDefinition default/vlan8" in str(error.value)
