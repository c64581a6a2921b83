"""By Helm, as docs/helm.md says it; last of all, on clusters where nothing of ours is left."""

from pathlib import Path

import pytest
import yaml

from e2e.k3d import readme, remains
from e2e.k3d.commands import run
from e2e.k3d.installation import SYSTEM, Installation
from e2e.k3d_lane import K3dWorld
from e2e.scenario import WEB, Scenario
from tests.lab.build import find
from tests.lab.lab import TENANT
from tests.lab.process import LabError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

PAGE = "docs/helm.md"


def write_values(operator: Installation, **changed: object) -> None:
    """The operator's files, as the page calls them."""
    name, _, tag = operator.image.rpartition(":")
    image = {"repository": name, "tag": tag}
    networks = {node: [operator.network(node)] for node in operator.host.nodes()}
    controller = {"settings": {**operator.settings, **changed}}
    values = {
        "host": {"image": image, "controller": controller, "agent": {"networks": networks}},
        "guest": {"image": image},
    }
    for side, value in values.items():
        (operator.folder / f"{side}.yaml").write_text(yaml.safe_dump(value))


def pods(k3d: K3dWorld) -> str:
    """The host program's."""
    label = "--selector=app.kubernetes.io/name=cloudprovider-host"
    return k3d.host.kubectl("get", "pods", SYSTEM, label, "--output=name")


def test_by_helm_installed_upgraded_and_gone(k3d: K3dWorld, tmp_path: Path) -> None:
    remains.clear(k3d.installation, k3d.guest)
    operator = Installation(tmp_path / "operator", k3d.installation.image, k3d.host, k3d.network)
    k3d.installation = operator
    write_values(operator)
    (host, guest), (upgrade_host, upgrade_guest), (end_guest, end_host) = (
        readme.blocks(heading, PAGE) for heading in ("Install", "Upgrade", "Uninstall")
    )
    operator.run(host, {"BRIDGE": operator.address(k3d.host.server)})
    operator.create_pools()
    operator.run(guest, operator.tenant(), k3d.guest)
    scenario = Scenario(k3d, "helm")
    scenario.guest.create()
    address = scenario.served("web")
    write_values(operator, **{"log-level": "debug"})
    with k3d.client.connect(address, WEB.port) as kept:
        pod = kept.get().pod
        before = pods(k3d)
        operator.run(upgrade_host)
        assert pods(k3d) != before, "settings that have changed are read anew"
        operator.run(upgrade_guest, guest=k3d.guest)
        assert kept.get().pod == pod
    assert scenario.guest.address("web") == address
    k3d.wait_until_agreed()
    scenario.guest.remove()
    k3d.wait_until_agreed()
    k3d.check_rights()
    remains.end_at_once(k3d.host)
    operator.run(end_guest, {"TENANT": TENANT}, k3d.guest)
    operator.run(end_host)
    remains.assert_none(operator, k3d.guest)


def test_a_wrong_value_is_one_sentence_and_nothing_is_installed(k3d: K3dWorld, tmp_path: Path) -> None:
    remains.clear(k3d.installation, k3d.guest)
    operator = Installation(tmp_path / "operator", k3d.installation.image, k3d.host, k3d.network)
    write_values(operator)
    wrong = f"agent.networks.{k3d.host.server}[0].devise=eth0"
    helm = (find("helm"), f"--kubeconfig={k3d.host.kubeconfig}", SYSTEM)
    chart = operator.folder / "manifests" / "charts" / "host"
    with pytest.raises(LabError) as caught:
        run(*helm, "install", "cloudprovider-host", chart, "-f", operator.folder / "host.yaml", "--set", wrong)
    (*_, sentence) = str(caught.value).splitlines()
    assert "additional properties 'devise' not allowed" in sentence
    assert run(*helm, "list", "--short") == ""
    assert remains.objects(k3d.host) == []
