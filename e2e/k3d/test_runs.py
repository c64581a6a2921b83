"""Several runs of the lane on one Docker do not meet."""

from pathlib import Path

import pytest

from e2e.k3d.machines import Machines
from e2e.k3d.sweep import left
from e2e.k3d_lane import K3dWorld

pytestmark = pytest.mark.e2e


def test_another_run_has_a_network_of_its_own_and_takes_away_just_that(k3d: K3dWorld, tmp_path: Path) -> None:
    ours, prefix = left(k3d.machines.prefix), f"{k3d.machines.prefix}o"
    folder = tmp_path / "other"
    folder.mkdir()
    with Machines(prefix, folder).up() as other:
        assert not other.lan.overlaps(k3d.network)
        other.client("client").close()
        assert left(prefix).keys() == {"container", "network"}
    assert left(prefix) == {}
    assert not folder.exists()
    assert left(k3d.machines.prefix) == ours
