"""Which copy guests reach: the Service of the bridge leads to the one that leads, whoever else is ready.

A Service with a selector would lead to every ready copy, and only one has a bridge. So it has none (``manifests/``),
and whoever leads writes its only EndpointSlice. Where the Service has a selector, or there is none, the operator has
another way in, and nothing is written.
"""

import asyncio
import contextlib
import logging
import random
from ipaddress import IPv4Address
from typing import Final, TypeVar

from cloudprovider.core.api.kubernetes import SERVICE_NAME_LABEL, Service
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import KubeError, NotFound
from cloudprovider.core.naming import BRIDGE_SERVICE
from cloudprovider.core.plan import IPAddress
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.resources import ENDPOINTS, ENDPOINTSLICES, SERVICES

T = TypeVar("T", bound=KubeObject)

_log: Final = logging.getLogger(__name__)

NAME: Final = f"{BRIDGE_SERVICE}-leader"
FIELD_MANAGER: Final = "cloudprovider-host"
MANAGER_LABEL: Final = "endpointslice.kubernetes.io/managed-by"
CHECK_SECONDS: Final = 60.0
"""Between two looks at whether the slice is as it should be."""
RETRY_FIRST, RETRY_MOST = 0.5, 10.0


class FrontDoor:
    """``address`` is this copy's own, ``port`` the one that its bridge listens on, in the Service's ``namespace``."""

    def __init__(
        self, client: KubeClient, namespace: str, address: IPAddress, port: int, *, rng: random.Random
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._address = address
        self._port = port
        self._rng = rng

    async def run(self) -> None:
        """Have the Service lead here until cancelled. The next leader's does not wait for that: it writes its own."""
        retry = RETRY_FIRST
        while True:
            try:
                await self.open()
            except KubeError as error:
                _log.warning(
                    "The bridge's Service could not be pointed here.",
                    extra={"service": BRIDGE_SERVICE, "error": str(error), "retry_in": retry},
                )
                await asyncio.sleep(retry * self._rng.uniform(0.8, 1.0))
                retry = min(2 * retry, RETRY_MOST)
            else:
                retry = RETRY_FIRST
                await asyncio.sleep(CHECK_SECONDS * self._rng.uniform(0.8, 1.0))

    async def open(self) -> None:
        """Write the slice, and remove what else leads somewhere. Raises KubeError."""
        try:
            service = await self._client.get(SERVICES, self._namespace, BRIDGE_SERVICE)
        except NotFound:
            return
        if service.spec.selector:
            return
        await self._client.apply(
            ENDPOINTSLICES, self._namespace, NAME, self._slice(service), field_manager=FIELD_MANAGER
        )
        # What Kubernetes wrote while an older release's Service had a selector stays for ever.
        found = await self._client.list(
            ENDPOINTSLICES, namespace=self._namespace, label_selector=f"{SERVICE_NAME_LABEL}={BRIDGE_SERVICE}"
        )
        stale = [slice_.metadata.name for slice_ in found.items if slice_.metadata.name != NAME]
        if stale:
            await self._remove(ENDPOINTS, BRIDGE_SERVICE)
        for name in stale:
            await self._remove(ENDPOINTSLICES, name)

    async def _remove(self, resource: Resource[T], name: str) -> None:
        with contextlib.suppress(NotFound):
            await self._client.delete(resource, self._namespace, name)

    def _slice(self, service: Service) -> dict[str, object]:
        owner = {"apiVersion": "v1", "kind": "Service", "name": BRIDGE_SERVICE, "uid": service.metadata.uid}
        return {
            "apiVersion": ENDPOINTSLICES.api_version,
            "kind": ENDPOINTSLICES.kind,
            "metadata": {
                "name": NAME,
                "namespace": self._namespace,
                "labels": {SERVICE_NAME_LABEL: BRIDGE_SERVICE, MANAGER_LABEL: FIELD_MANAGER},
                "ownerReferences": [owner],
            },
            "addressType": "IPv4" if isinstance(self._address, IPv4Address) else "IPv6",
            "endpoints": [{"addresses": [str(self._address)], "conditions": {"ready": True}}],
            "ports": [{"name": "bridge", "port": self._port, "protocol": "TCP", "appProtocol": "grpc"}],
        }
