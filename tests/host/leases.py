"""The Leases by which agents say that their hosts are there."""

import asyncio
from datetime import datetime, timedelta

import msgspec

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import NotFound
from cloudprovider.core.hosts import INSTANCE_LABEL, NODE_ANNOTATION, STANDING_ANNOTATION, Presence, standing_text
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import LEASES


async def renew(
    client: KubeClient, name: str, *networks: str, ready: bool = True, token: int = 1, silent: tuple[str, ...] = ()
) -> None:
    """As the agent of a host does. ``silent``: whom it does not hear any more."""
    renewed = datetime(2026, 1, 1) + timedelta(seconds=asyncio.get_running_loop().time())  # noqa: DTZ001 - of tests
    said = Presence(mac="02:00:00:00:00:01", ready=ready, silent=silent)
    standing = dict.fromkeys(networks or ("",), said)
    lease = Lease(
        metadata=ObjectMeta(
            name=f"cloudprovider-agent-default-{name}",
            namespace=SYSTEM,
            labels={INSTANCE_LABEL: "default"},
            annotations={NODE_ANNOTATION: name, STANDING_ANNOTATION: standing_text(standing)},
        ),
        spec=LeaseSpec(
            holder_identity=name,
            lease_duration_seconds=15,
            renew_time=f"{renewed.isoformat(timespec='microseconds')}Z",
            lease_transitions=token,
        ),
    )
    try:
        old = await client.get(LEASES, *lease.key)
    except NotFound:
        await client.create(LEASES, lease)
        return
    metadata = msgspec.structs.replace(lease.metadata, resource_version=old.metadata.resource_version)
    await client.replace(LEASES, msgspec.structs.replace(lease, metadata=metadata))


async def keep(client: KubeClient, *names: str, silent: tuple[str, ...] = ()) -> None:
    """Renew them until cancelled."""
    while True:
        for name in names:
            await renew(client, name, silent=silent)
        await asyncio.sleep(5)
