"""The end, so it runs last: by README.md's commands, after which nothing of ours is left anywhere."""

import pytest

from e2e.k3d.installation import left_on
from e2e.k3d.machines import Cluster
from e2e.k3d_lane import K3dWorld
from e2e.scenario import WEB, Scenario
from tests.lab.process import LabError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

KINDS = (
    "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,priorityclasses,"
    "validatingadmissionpolicies,validatingadmissionpolicybindings,validatingwebhookconfigurations,apiservices"
)
TENANT = "/apis/cloudprovider.harvesterhci.io/v1beta1/namespaces/shops/guestclusters/shop"


def ours(cluster: Cluster) -> list[str]:
    """Objects of ours in a cluster: what a cluster has of itself names neither us nor the group's maker."""
    names = cluster.kubectl("get", KINDS, "--output=name").split()
    return [name for name in names if "cloudprovider" in name or "harvesterhci" in name]


def test_uninstalled_nothing_is_left(k3d: K3dWorld) -> None:
    scenario = Scenario(k3d, "uninstall")
    scenario.guest.create()
    address = scenario.served("web")
    nodes = k3d.host.nodes()
    image = k3d.installation.image
    assert ours(k3d.host)
    assert any(left_on(node, image) for node in nodes), "or it would look in the wrong place"
    scenario.guest.remove()
    scenario.wait_silent(address, WEB)
    k3d.host.api.patch(TENANT, {"spec": {"deletionGracePeriodSeconds": 0}})
    k3d.installation.uninstall_guest(k3d.guest)
    k3d.installation.uninstall_host()
    assert ours(k3d.guest) == []
    assert ours(k3d.host) == []
    assert {node: left_on(node, image) for node in nodes} == {node: [] for node in nodes}
    with pytest.raises(LabError, match="doesn't have a resource type"):
        k3d.host.kubectl("get", "loadbalancers.loadbalancer.harvesterhci.io", "-A")
