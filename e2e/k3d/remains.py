"""What is left of ours where nothing should be."""

from e2e.k3d.installation import Installation, left_on
from e2e.k3d.machines import Cluster
from tests.lab.lab import TENANT, TENANT_NAMESPACE

KINDS = (
    "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,priorityclasses,"
    "validatingadmissionpolicies,validatingadmissionpolicybindings,validatingwebhookconfigurations,apiservices"
)
GUEST_CLUSTER = f"/apis/cloudprovider.harvesterhci.io/v1beta1/namespaces/{TENANT_NAMESPACE}/guestclusters/{TENANT}"


def end_at_once(host: Cluster) -> None:
    """The tenant needs no time of grace: its load balancers are gone already."""
    host.api.patch(GUEST_CLUSTER, {"spec": {"deletionGracePeriodSeconds": 0}})


def clear(installation: Installation, guest: Cluster) -> None:
    """Have nothing installed, where something is; the tenant's own namespace goes too, which is not ours."""
    if objects(installation.host):
        end_at_once(installation.host)
        installation.uninstall_guest(guest)
        installation.uninstall_host()
    installation.host.kubectl("delete", "namespace", TENANT_NAMESPACE, "--ignore-not-found")


def assert_none(installation: Installation, guest: Cluster) -> None:
    """Nothing of ours is left anywhere: in either cluster, on any node."""
    assert objects(guest) == []
    assert objects(installation.host) == []
    assert traces(installation) == {}


def objects(cluster: Cluster) -> list[str]:
    """Objects of ours in a cluster: what a cluster has of itself names neither us nor the group's maker."""
    names = cluster.kubectl("get", KINDS, "--output=name").split()
    return [name for name in names if "cloudprovider" in name or "harvesterhci" in name]


def traces(installation: Installation) -> dict[str, list[str]]:
    """What is left in the kernels of the host's nodes, by node; only nodes where something is."""
    found = {node: left_on(node, installation.image) for node in installation.host.nodes()}
    return {node: what for node, what in found.items() if what}
