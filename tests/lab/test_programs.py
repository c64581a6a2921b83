"""What a program's role lacks is not overlooked: it is counted over all runs of it, and ends a lab with an error."""

from pathlib import Path

import pytest

from tests.lab.controlplane import ControlPlane
from tests.lab.lab import Lab
from tests.lab.network import Namespace
from tests.lab.process import LabError, wait_for
from tests.lab.programs import agent_program

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel]


def test_a_request_beyond_its_rights_is_told(control_plane: ControlPlane, tmp_path: Path) -> None:
    networks = tmp_path / "networks.yaml"
    networks.write_text("networks: [{device: lo}]\n")
    nobody = control_plane.kubeconfig_for("nobody")
    log = tmp_path / "agent.log"
    agent = agent_program(Namespace(""), nobody, networks, node="host", instance="rights", log=log)
    lab = Lab(tmp_path, tmp_path / "logs")
    lab.programs["agent"] = agent
    lab.check_rights()
    agent.start(wait=False)
    try:
        wait_for("a refusal", agent.forbidden, timeout=20)
    finally:
        agent.kill()
    assert "get leases" in set(agent.forbidden()) <= {"get leases", "list leases"}
    with pytest.raises(LabError, match=r"agent: get leases \(\d+ times\)"):
        lab.check_rights()
