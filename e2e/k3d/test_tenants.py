"""Two guest clusters of two tenants on one host: each has only its own; and a cluster that goes as a whole."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.k3d.installation import PODS, SERVICES
from e2e.k3d_lane import K3dWorld, build_images
from e2e.scenario import WEB, Scenario
from tests.lab.client import Api
from tests.lab.lab import TENANT, TENANT_NAMESPACE, Pool
from tests.lab.process import wait_for
from tests.lab.programs import POOLS_PATH
from tests.lab.snapshot import BLOCKS, LOADBALANCERS, TENANTS
from tests.lab.workload import POOL_ANNOTATION, Workspace, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

OTHER, OTHER_NAMESPACE = "bakery", "bakers"
THEIRS = Pool("bakery", "10.77.100.1", "10.77.100.9", guest_cluster=OTHER, namespace=OTHER_NAMESPACE)
GRACE_SECONDS = 5
PATH = f"/apis/cloudprovider.harvesterhci.io/v1beta1/namespaces/{OTHER_NAMESPACE}/guestclusters/{OTHER}"


@contextmanager
def pool(k3d: K3dWorld) -> Iterator[Pool]:
    """A pool for the other tenant alone; at the end nobody has an address of it, or it would stay."""
    theirs, host = THEIRS.on(k3d.network), k3d.host.api
    host.create(POOLS_PATH, theirs.manifest())
    yield theirs
    host.delete(f"{POOLS_PATH}/{theirs.name}")


def allocated(host: Api) -> set[str]:
    """The addresses that are handed out."""
    return {address for block in host.items(BLOCKS) for address in block["spec"].get("allocations", {})}


def test_two_tenants_and_the_end_of_one(k3d: K3dWorld, scenario: Scenario) -> None:
    host = k3d.host.api
    ours = scenario.served("web")
    with pool(k3d) as bakery:
        try:
            other = k3d.machines.cluster("other", agents=0, pods=PODS["guest"], services=SERVICES["guest"])
            k3d.machines.import_images([other], *build_images(k3d.machines))
            k3d.installation.install_guest(other, OTHER, OTHER_NAMESPACE)
            guest = Workspace(other.api, scenario.guest.namespace)  # of the same name on purpose
            guest.create()
            guest.deploy("web", 1)
            guest.expose(service("web", [WEB]))
            theirs = guest.wait_address("web")
            assert bakery.holds(theirs)
            (pod,) = guest.pods("web")
            assert scenario.wait_answer(theirs, WEB).pod == pod["metadata"]["name"]
            scenario.wait_pods(ours, WEB, 2)
            namespaces = {b["metadata"]["namespace"] for b in host.items(LOADBALANCERS)}
            assert namespaces == {TENANT_NAMESPACE, OTHER_NAMESPACE}
            nodes = {t["metadata"]["name"]: {n["name"] for n in t["status"]["nodes"]} for t in host.items(TENANTS)}
            assert nodes[OTHER] == {other.server}
            assert nodes[TENANT] == k3d.traffic_nodes()
        finally:
            k3d.machines.delete_cluster(f"{k3d.machines.prefix}-other")
        assert theirs in allocated(host), "silence ends nobody: only the operator does"
        host.patch(PATH, {"spec": {"deletionGracePeriodSeconds": GRACE_SECONDS}})
        host.delete(PATH)
        wait_for("the tenant's end", lambda: host.find(PATH) is None, timeout=60)
        scenario.wait_silent(theirs, WEB)
        assert theirs not in allocated(host)
    scenario.wait_pods(ours, WEB, 2)


def test_a_pool_of_another_tenant_is_not_to_be_had_by_name(k3d: K3dWorld, scenario: Scenario) -> None:
    with pool(k3d):
        scenario.guest.expose(service("web", [WEB], annotations={POOL_ANNOTATION: THEIRS.name}))
        said = scenario.wait_said("web", "PoolNotFound")
        assert said.startswith(f'there is no pool "{THEIRS.name}" open to this cluster: name one of lan, reserved, or')
        scenario.guest.delete("web")
        scenario.guest.wait_deleted("web")
