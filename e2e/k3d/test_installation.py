"""What is installed runs with no more than it needs, as seen from within the pods and by the API servers."""

import json

import pytest

from e2e.k3d.installation import SYSTEM
from e2e.k3d.machines import Cluster
from e2e.k3d_lane import K3dWorld
from tests.lab.process import LabError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NEEDED = sum(1 << number for number in (12, 13, 21, 5, 6, 7, 10, 23))
"""For networks CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN; to run bfdd and to end it CAP_KILL, CAP_SETGID,
CAP_SETUID, CAP_NET_BIND_SERVICE and CAP_SYS_NICE (capabilities(7))."""
ABOUT = "import os; print(open('/proc/1/status').read())"


def about(cluster: Cluster, workload: str) -> dict[str, str]:
    """What the kernel says of a workload's first process (proc(5))."""
    told = cluster.kubectl("exec", SYSTEM, workload, "--", "python3", "-c", ABOUT)
    return {key: value.strip() for key, _, value in (line.partition(":") for line in told.splitlines())}


@pytest.mark.parametrize("program", ["host", "guest"])
def test_host_and_guest_are_nobody_and_may_nothing(k3d: K3dWorld, program: str) -> None:
    status = about(k3d.host if program == "host" else k3d.guest, f"deployment/cloudprovider-{program}")
    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2", "a filter"


def test_the_agent_keeps_eight_capabilities(k3d: K3dWorld) -> None:
    status = about(k3d.host, "daemonset/cloudprovider-agent")
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == NEEDED
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("program", ["host", "guest", "agent"])
def test_nothing_can_be_written_into_the_image(k3d: K3dWorld, program: str) -> None:
    cluster = k3d.guest if program == "guest" else k3d.host
    kind = "daemonset" if program == "agent" else "deployment"
    with pytest.raises(LabError, match="Read-only file system"):
        cluster.kubectl("exec", SYSTEM, f"{kind}/cloudprovider-{program}", "--", "touch", "/opt/cloudprovider/x")


def test_the_image_carries_its_bill_of_materials(k3d: K3dWorld) -> None:
    path = "/opt/cloudprovider/share/sbom/cloudprovider.cdx.json"
    told = json.loads(k3d.host.kubectl("exec", SYSTEM, "deployment/cloudprovider-host", "--", "cat", path))
    found = {component["name"]: component for component in told["components"]}
    assert found["grpcio"]["hashes"]
    assert found["libnftables1"]["purl"].startswith("pkg:deb/")


def test_the_restricted_namespace_of_the_guest_takes_no_other_pods(k3d: K3dWorld) -> None:
    with pytest.raises(LabError, match="violates PodSecurity"):
        k3d.guest.kubectl("run", SYSTEM, "intruder", "--image=none", "--privileged", "--dry-run=server")


def test_a_tenants_guest_can_not_write_on_the_host_but_by_the_bridge(k3d: K3dWorld) -> None:
    """Whoever else has rights on load balancers can't pass one off as a guest cluster's."""
    forged = {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "LoadBalancer",
        "metadata": {"name": "forged", "namespace": "shops"},
        "spec": {
            "workloadType": "cluster",
            "service": {"namespace": "default", "name": "web", "uid": "1"},
            "listeners": [{"name": "http", "port": 80, "protocol": "TCP", "backendPort": 30080}],
        },
    }
    with pytest.raises(LabError, match="only the bridge may write it"):
        k3d.host.kubectl("create", "-f", "-", stdin=json.dumps(forged))
