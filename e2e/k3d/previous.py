"""The version before: its tree out of the history, and its image.

Until something is released it is the first one whose README.md installs it: kinds and the bridge had fewer fields then.
"""

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from e2e.k3d.machines import ROOT, Machines
from tests.lab.process import LabError

COMMIT: Final = "3fdaa237b22d9d90affa9e83e38605e43aaf4e67"
VERSION: Final = "0.1.0"


def unpack(folder: Path) -> Path:
    """Its tree, in a new folder. Raises LabError where the history does not go back that far."""
    told = subprocess.run(["git", "-C", ROOT, "archive", COMMIT], capture_output=True, check=False)
    if told.returncode != 0:
        raise LabError(f"the version before can't be had: {told.stderr.decode().strip()} (is this a shallow clone?)")
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(told.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def build(machines: Machines, tree: Path) -> str:
    """Its image."""
    subprocess.run([sys.executable, "manifests/image/wheels.py"], cwd=tree, check=True, capture_output=True)
    tag = f"cloudprovider-e2e:{machines.prefix}-before"
    return machines.image(tag, tree / "manifests" / "image" / "Dockerfile", f"VERSION={VERSION}", context=tree)
