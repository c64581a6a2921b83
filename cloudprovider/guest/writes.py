"""The two things that are written to a Service: its finalizers, and our part of its status.

Each result goes into the cache at once, so that the next decision is made on what stands there now.
"""

from collections.abc import Sequence

from cloudprovider.core.api.kubernetes import LoadBalancerIngress, Service
from cloudprovider.core.api.meta import Condition
from cloudprovider.guest.servicestatus import FIELD_MANAGER, status_patch
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import SERVICES


class ServiceWriter:
    """Writes to Services. Raises KubeError; Conflict and NotFound where the Service is not the one that was read."""

    def __init__(self, client: KubeClient, services: Informer[Service]) -> None:
        self._client = client
        self._services = services

    async def set_finalizers(self, service: Service, finalizers: Sequence[str]) -> Service:
        """Replace the finalizers, if nobody has written the Service since it was read: a merge patch replaces the
        whole list, and must not take away another's."""
        meta = service.metadata
        patch = {
            "metadata": {
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
                "finalizers": list(finalizers) or None,
            }
        }
        return self._seen(await self._client.merge_patch(SERVICES, *service.key, patch))

    async def apply_status(
        self, service: Service, ingress: Sequence[LoadBalancerIngress] | None, conditions: Sequence[Condition]
    ) -> Service:
        """Make our part of the status be this; ``ingress`` None: the addresses are not ours. What we had and is left
        out goes."""
        patch = status_patch(service, ingress, conditions)
        return self._seen(
            await self._client.apply(SERVICES, *service.key, patch, field_manager=FIELD_MANAGER, subresource="status")
        )

    def _seen(self, service: Service) -> Service:
        self._services.observe(service)
        return service
