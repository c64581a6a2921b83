"""The end, so it runs after all that needs what is installed: by README.md's commands, after which nothing of ours is
left anywhere."""

import pytest

from e2e.k3d import remains
from e2e.k3d_lane import K3dWorld
from e2e.scenario import WEB, Scenario
from tests.lab.process import LabError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]


def test_uninstalled_nothing_is_left(k3d: K3dWorld) -> None:
    scenario = Scenario(k3d, "uninstall")
    scenario.guest.create()
    address = scenario.served("web")
    assert remains.objects(k3d.host)
    assert remains.traces(k3d.installation), "or it would look in the wrong place"
    scenario.guest.remove()
    scenario.wait_silent(address, WEB)
    remains.clear(k3d.installation, k3d.guest)
    remains.assert_none(k3d.installation, k3d.guest)
    with pytest.raises(LabError, match="doesn't have a resource type"):
        k3d.host.kubectl("get", "loadbalancers.loadbalancer.harvesterhci.io", "-A")
