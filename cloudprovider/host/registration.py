"""A guest introduces itself: binding its kube-system UID to the tenant, once, or again where an operator says so."""

import logging
from typing import Final

import msgspec

from cloudprovider.bridge.api import Hello, PeerCertificate, Reason, Welcome
from cloudprovider.core.api.guestcluster import (
    REBIND_ANNOTATION,
    CertificateRecord,
    GuestCluster,
    GuestClusterStatus,
)
from cloudprovider.core.errors import BridgeError, Conflict, NotFound
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.tenancy import Binding, bind
from cloudprovider.core.times import rfc3339
from cloudprovider.host.guestclusters import GuestClusterStatuses

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0


class Registration:
    """Answers Connect."""

    def __init__(self, statuses: GuestClusterStatuses, *, version: str) -> None:
        self._statuses = statuses
        self._version = version
        self._rebinding: dict[Tenant, tuple[str, str]] = {}

    async def connect(
        self, tenant: Tenant, cluster: GuestCluster, hello: Hello, certificate: PeerCertificate | None = None
    ) -> Welcome:
        """Bind the UID where that is to be done, note the guest's version and certificate, and welcome it.

        Raises BridgeError CLUSTER_MISMATCH.
        """
        bound = cluster.status.cluster_uid
        verdict = bind(bound, hello.cluster_uid, cluster.metadata.annotations.get(REBIND_ANNOTATION, ""))
        if verdict is Binding.MISMATCH and self._rebinding.get(tenant) == (bound, hello.cluster_uid):
            verdict = Binding.REBIND  # the annotation is used up, but the binding could not be written then
        if verdict is Binding.MISMATCH:
            raise BridgeError(
                f"GuestCluster {tenant.path} belongs to the cluster whose kube-system UID is {bound}, the caller's is"
                f" {hello.cluster_uid}: give each cluster a certificate of its own; if this one was rebuilt, the host's"
                f" operator lets it in by the annotation {REBIND_ANNOTATION}",
                reason=Reason.CLUSTER_MISMATCH,
                retryable=False,
            )
        try:
            await self._bind(tenant, cluster, hello, verdict, certificate)
        except Conflict as other:
            raise BridgeError(
                f"GuestCluster {tenant.path} has just been changed: try again",
                reason=Reason.UNAVAILABLE,
                retry_after=_RETRY_SECONDS,
            ) from other
        except NotFound as gone:
            raise BridgeError(
                f"there is no GuestCluster {tenant.path} on this host any more: an operator must create it",
                reason=Reason.UNKNOWN_TENANT,
                retryable=False,
            ) from gone
        return Welcome(host_version=self._version, tenant=tenant, max_ports=cluster.spec.quota.ports_per_load_balancer)

    async def _bind(
        self,
        tenant: Tenant,
        cluster: GuestCluster,
        hello: Hello,
        verdict: Binding,
        certificate: PeerCertificate | None,
    ) -> None:
        before = cluster.status.cluster_uid
        if verdict is Binding.REBIND and tenant not in self._rebinding:
            # First used up, then bound: an "any" that is left over would let a third cluster in.
            await self._statuses.use_up_rebind(cluster)
            self._rebinding[tenant] = (before, hello.cluster_uid)

        def change(status: GuestClusterStatus) -> GuestClusterStatus:
            if status.cluster_uid not in (before, hello.cluster_uid):
                raise Conflict("another cluster was bound meanwhile", status=409)
            fresh = verdict is Binding.REBIND  # a rebuilt cluster counts its leaders anew
            return msgspec.structs.replace(
                status,
                cluster_uid=hello.cluster_uid,
                guest_version=hello.guest_version,
                certificate=_record(certificate) if certificate is not None else status.certificate,
                inventory=None if fresh else status.inventory,
                nodes=[] if fresh else status.nodes,
            )

        await self._statuses.update(tenant, change, exclusive=verdict is not Binding.BOUND)
        self._rebinding.pop(tenant, None)
        if verdict is not Binding.BOUND:
            _log.info(
                "A guest cluster is bound to its tenant.",
                extra={"tenant": tenant.path, "cluster_uid": hello.cluster_uid, "before": before},
            )


def _record(certificate: PeerCertificate) -> CertificateRecord:
    return CertificateRecord(
        fingerprint=certificate.fingerprint,
        not_before=rfc3339(certificate.not_before),
        not_after=rfc3339(certificate.not_after),
    )
