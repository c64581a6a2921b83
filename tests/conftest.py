"""Fixtures that more than one kind of test needs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.controlplane import ControlPlane, Settings

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "build" / "logs"
DEFINITIONS = ROOT / "manifests" / "crds"
KUBEVIRT = ROOT / "tests" / "lab" / "kubevirt"
"""What of KubeVirt's definitions the tests need."""


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A real API server (with etcd; no controllers), with our CustomResourceDefinitions and KubeVirt's of machines, for
    ``apiserver`` tests.

    All tests of a run share it: make a namespace of your own, and leave it running. A test that restarts an API
    server makes a ControlPlane of its own.
    """
    with tempfile.TemporaryDirectory(prefix="control-plane-") as folder:
        plane = ControlPlane(Path(folder), LOGS / "tests", Settings(name="shared"))
        with plane:
            if DEFINITIONS.is_dir():
                plane.apply_definitions(DEFINITIONS)
            plane.apply_definitions(KUBEVIRT)
            yield plane
