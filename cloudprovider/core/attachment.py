"""Which bridge and VLAN a Harvester network is, read from its NetworkAttachmentDefinition."""

from typing import NamedTuple

import msgspec

from cloudprovider.core.api.attachment import NetworkAttachmentDefinition
from cloudprovider.core.errors import ConfigurationError


class BridgeNetwork(NamedTuple):
    """The host's bridge, and the VLAN on it; 0: untagged."""

    bridge: str
    vlan: int


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    """A CNI configuration of the plugin "bridge" (cni.dev), in Harvester's use of it."""

    type: str = ""
    bridge: str = ""
    vlan: int = 0
    vlan_trunk: list[object] = []


def bridge_network(attachment: NetworkAttachmentDefinition) -> BridgeNetwork:
    """Read it. Raises ConfigurationError for a network that load balancers can't be given on."""
    where = f"NetworkAttachmentDefinition {'/'.join(attachment.key)}"
    try:
        config = msgspec.json.decode(attachment.spec.config, type=_Config)
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"{where}: its spec.config is no CNI configuration of a bridge ({error}); name the network's device in "
            "the networks file"
        ) from error
    if config.type != "bridge" or not config.bridge:
        raise ConfigurationError(
            f'{where} is of type "{config.type}", not a bridge with a name: load balancers have no way onto it; choose '
            "another network, or name a device of the host in the networks file"
        )
    if config.vlan_trunk:
        raise ConfigurationError(f"{where} is a trunk of several VLANs; make a network of the one VLAN that is meant")
    if not 0 <= config.vlan <= 4094:
        raise ConfigurationError(f"{where}: VLAN {config.vlan} is not between 1 and 4094 (0: untagged)")
    return BridgeNetwork(config.bridge, config.vlan)
