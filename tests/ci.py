"""What .ci/run runs after lint and types (``python -m tests.ci``): all tests, then those of a real installation on k3d.

The latter, e2e/k3d, needs docker, k3d and kubectl. ``--k3d FOLDER`` names a folder of programs that bring them up where
they do not answer: ``up``, ``env`` (prints what to export) and ``down``. ``up`` is told by ``K3D_LAB_PACKAGES`` which
Debian packages images need, as they are built without a network. What it has to build on a new machine it builds beside
the other lanes, from the processor time that they leave.
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from e2e.k3d.machines import unusable
from tests import lanes
from tests.lab.keeper import Keeper
from tests.lab.process import LabError

LOGS: Final = lanes.ROOT / "build" / "logs"
LOCK: Final = Path(tempfile.gettempdir()) / "cloudprovider-ci-k3d.lock"
"""Held while the clusters are up: what one run has brought up is not taken down under another one."""
PACKAGES: Final = ("frr",)
"""What manifests/image/Dockerfile would install."""
LANE: Final = ("-m", "pytest", "-p", "no:cacheprovider", "--lane=k3d", "--durations=15", "e2e/k3d")


class Rig:
    """Where the clusters come from: ``folder``'s programs; None: docker, k3d and kubectl are there."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """What has to be built for it is built meanwhile; on exit it is, or what is left is :meth:`up`'s to build."""
        if self.folder is None or self._environment():
            yield
            return
        build = ["bash", "-c", f"{shlex.join(self._up)} && exec {shlex.join(self._down)}"]
        with Keeper(build, self._down, LOGS / "k3d-build.log", idle=True) as keeper:
            yield
            with contextlib.suppress(LabError):  # a bound of its own that is for a machine less busy
                keeper.wait_begun()

    @contextlib.contextmanager
    def up(self) -> Iterator[Mapping[str, str]]:
        """It is up; the environment that it is reached by. Raises LabError."""
        if self.folder is None:
            yield os.environ
            return
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(LOCK.open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            end = ["true"] if self._environment() else self._down  # who found it up leaves it so
            keeper = stack.enter_context(Keeper(self._up, end, LOGS / "k3d-up.log"))
            stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)
            keeper.wait_begun()
            yield self._environment()

    @property
    def _up(self) -> list[str]:
        return ["env", f"K3D_LAB_PACKAGES={','.join(PACKAGES)}", f"{self.folder}/up"]

    @property
    def _down(self) -> list[str]:
        return ["flock", str(LOCK), f"{self.folder}/down"]

    def _environment(self) -> Mapping[str, str]:
        """Nothing while it is down."""
        script = 'exports=$("$0/env") && eval "$exports" && exec env -0'
        told = subprocess.run(["bash", "-c", script, str(self.folder)], capture_output=True, text=True, check=False)
        return dict(line.split("=", 1) for line in told.stdout.split("\0") if line)


def find_rig(folder: Path | None) -> Rig | str:
    """What the lane can run on here, or in one sentence why there is nothing."""
    if folder is not None and (folder / "up").exists():
        return Rig(folder.resolve())
    why = unusable()
    if not why:
        return Rig(None)
    return why if folder is None else f"there is no {folder / 'up'}, and {why}"


def run_lane(rig: Rig) -> int:
    """Run e2e/k3d; return its exit code."""
    began = time.monotonic()
    with rig.up() as environment:
        subprocess.run([sys.executable, "manifests/image/wheels.py"], cwd=lanes.ROOT, check=True)
        code = subprocess.run([sys.executable, *LANE], cwd=lanes.ROOT, env=environment, check=False).returncode
    print(f"the k3d lane took {time.monotonic() - began:.0f} s", flush=True)
    return code


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k3d", type=Path, metavar="FOLDER")
    rig = find_rig(parser.parse_args().k3d)
    began = time.monotonic()
    if isinstance(rig, str):
        code = lanes.main()
        print(f"the k3d lane was left out: {rig}")
    else:
        try:
            with rig.prepared():
                code = lanes.main()
            code = run_lane(rig) or code
        except LabError as error:
            print(f"the k3d lane: {error}", file=sys.stderr)
            code = 1
    print(f"all tests took {(time.monotonic() - began) / 60:.1f} min")
    return code


if __name__ == "__main__":
    sys.exit(main())
