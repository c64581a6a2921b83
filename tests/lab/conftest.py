"""The whole lab, for the tests of what belongs to it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.programs import ROOT


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """One lab for all of this folder's tests, which leave everything running; gone before the scenarios begin."""
    logs = ROOT / "build" / "logs" / "lab"
    with tempfile.TemporaryDirectory(prefix="lab-") as folder, Lab(Path(folder), logs).running() as lab:
        yield lab
