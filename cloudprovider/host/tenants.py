"""The end of a tenant: only deleting its GuestCluster ends it, after a grace, and with it go its load balancers.

Handlers for kopf, which keeps the finalizer on the GuestCluster and repeats the handler. What is decided follows from
the object's own deletion time, so it does not matter how often the program was started meanwhile.
"""

import logging
from datetime import datetime
from typing import Any, Final, Protocol

import kopf

from cloudprovider.core.errors import KubeError, NotFound
from cloudprovider.core.exchange import Tenant
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import Clock
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS

_log = logging.getLogger(__name__)

FINALIZER: Final = "cloudprovider.harvesterhci.io/tenant"
_RECHECK_SECONDS: Final = 2.0
_LONGEST_WAIT: Final = 600.0
"""A grace may be changed while it passes."""


class Ending(Protocol):
    """Who ends tenants."""

    async def proceed(self, tenant: Tenant, deleted_at: datetime, grace_seconds: int) -> float | None:
        """See :meth:`TenantEnd.proceed`."""
        ...


class TenantEnd:
    """Ends tenants whose GuestCluster is being deleted."""

    def __init__(self, client: KubeClient, caches: Caches, *, now: Clock) -> None:
        self._client = client
        self._caches = caches
        self._now = now

    async def proceed(self, tenant: Tenant, deleted_at: datetime, grace_seconds: int) -> float | None:
        """Do the next step; return in how many seconds to come again, None once nothing is left of the tenant.

        Raises KubeError.
        """
        left = grace_seconds - (self._now() - deleted_at).total_seconds()
        if left > 0:
            return min(left, _LONGEST_WAIT)
        remaining = self._caches.load_balancers_of(tenant)
        if not remaining:
            _log.info("A tenant has ended.", extra={"tenant": tenant.path})
            return None
        for lb in remaining:
            if not lb.metadata.deletion_timestamp:
                try:
                    await self._client.delete(LOADBALANCERS, *lb.key, uid=lb.metadata.uid)
                except NotFound:
                    continue
        _log.info(
            "A tenant's grace is over; its load balancers go.",
            extra={"tenant": tenant.path, "remaining": len(remaining)},
        )
        return _RECHECK_SECONDS


def register(registry: kopf.OperatorRegistry, end: Ending) -> None:
    """Let kopf call ``end`` for every GuestCluster that is being deleted."""

    @kopf.on.delete(GUESTCLUSTERS.group, GUESTCLUSTERS.version, GUESTCLUSTERS.plural, registry=registry)
    async def deleted(namespace: str | None, name: str, meta: kopf.Meta, spec: kopf.Spec, **_: Any) -> None:
        try:
            again = await end.proceed(
                Tenant(namespace or "", name),
                datetime.fromisoformat(meta["deletionTimestamp"]),
                int(spec.get("deletionGracePeriodSeconds", 3600)),
            )
        except KubeError as error:
            raise kopf.TemporaryError(str(error), delay=_RECHECK_SECONDS) from error
        if again is not None:
            raise kopf.TemporaryError("the tenant's grace has not passed, or load balancers are left", delay=again)
