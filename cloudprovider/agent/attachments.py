"""Networks whose device stands in the host cluster's NetworkAttachmentDefinitions, not in the networks file."""

import logging
from dataclasses import replace

from cloudprovider.core.attachment import bridge_network
from cloudprovider.core.errors import ConfigurationError, DataPlaneError, KubeError, NotFound
from cloudprovider.dataplane.api import DataPlane, NetworkConfig, Segment
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import NETWORK_ATTACHMENTS

log = logging.getLogger(__name__)


class AttachedDataPlane:
    """A data plane that looks up the device of a network that has none, each time that it is opened. Meets
    :class:`~cloudprovider.dataplane.api.DataPlane`: who opens a network tries again until it succeeds."""

    def __init__(self, dataplane: DataPlane, client: KubeClient) -> None:
        self._dataplane = dataplane
        self._client = client

    async def open(self, config: NetworkConfig) -> Segment:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        return await self._dataplane.open(config if config.device else await self._found(config))

    async def networks(self) -> list[str]:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        return await self._dataplane.networks()

    async def remove(self, network: str) -> None:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        await self._dataplane.remove(network)

    async def _found(self, config: NetworkConfig) -> NetworkConfig:
        namespace, _, name = config.name.partition("/")
        try:
            found = bridge_network(await self._client.get(NETWORK_ATTACHMENTS, namespace, name))
        except NotFound as error:
            raise DataPlaneError(
                f"network {config.name!r} has no device in the networks file, and there is no "
                f"NetworkAttachmentDefinition of that name in the host cluster ({error}); name the device, or make "
                "the network"
            ) from error
        except (KubeError, ConfigurationError) as error:
            raise DataPlaneError(f"network {config.name!r} has no device in the networks file: {error}") from error
        log.info(
            "The network's device was found in the host cluster.",
            extra={"network": config.name, "device": found.bridge, "vlan": found.vlan},
        )
        return replace(config, device=found.bridge, vlan=found.vlan)
