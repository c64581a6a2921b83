"""Guest clusters as a user may read them: whose nodes there are, and how they are."""

from typing import Final

from msgspec import structs

from cloudprovider.console.live import Followed, Topic, follow_once
from cloudprovider.console.sessions import Session
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus
from cloudprovider.kube.resources import GUESTCLUSTERS

HIDDEN: Final = "You may not read GuestCluster objects: how the nodes of guest clusters are is not shown."


def clusters_topic(namespace: str = "", name: str = "") -> Topic[GuestCluster, GuestCluster]:
    """Those of a namespace, or of all; or the one of a name."""
    return Topic(resource=GUESTCLUSTERS, namespace=namespace, name=name, keep=_essence, refused=HIDDEN)


async def visible_clusters(session: Session, namespace: str = "", name: str = "") -> Followed[GuestCluster]:
    """What may be read of them now."""
    return await follow_once(session.client, clusters_topic(namespace, name))


def _essence(cluster: GuestCluster) -> GuestCluster:
    status = GuestClusterStatus(nodes=cluster.status.nodes, node_health=cluster.status.node_health)
    return structs.replace(cluster, status=status)
