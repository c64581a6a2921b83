"""The API server of the session with our CustomResourceDefinitions on it."""

from pathlib import Path

import pytest

from cloudprovider.cli.crds import DEFINITIONS
from tests.lab.controlplane import ControlPlane
from tests.manifests.kubectl import Kubectl

MANIFESTS = Path(__file__).parents[2] / "manifests"


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane) -> Kubectl:
    """kubectl with all rights."""
    return Kubectl(control_plane.kubectl, control_plane.kubeconfig)


@pytest.fixture(scope="session")
def crds(kubectl: Kubectl) -> Kubectl:
    """kubectl, once the API server serves our kinds."""
    kubectl("apply", "--server-side", "-f", str(MANIFESTS / "crds"))
    names = [f"crd/{definition.name}" for definition in DEFINITIONS]
    kubectl("wait", "--for=condition=Established", "--timeout=20s", *names)
    return kubectl
