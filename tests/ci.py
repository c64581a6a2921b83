"""What .ci/run runs after lint and types (``python -m tests.ci``): all tests, then those of a real installation on k3d.

The latter, e2e/k3d, needs docker, k3d and kubectl. ``--k3d FOLDER`` names a folder of programs that bring them up:
``up``, ``env`` (prints what to export) and ``down``. ``up`` is told by ``K3D_LAB_PACKAGES`` which Debian packages
images need, as they are built without a network.

Where there is nothing to run the lane on, or ``up`` fails or takes too long, as on a new machine where it has programs
to build, the lane is left out, and a line says why: no change is to blame for that. What ``up`` has built it finds the
next time.
"""

import argparse
import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Final

from e2e.k3d.machines import unusable
from tests import lanes
from tests.lab.keeper import Keeper
from tests.lab.process import LabError, wait_for

LOGS: Final = lanes.ROOT / "build" / "logs"
LOCK: Final = Path(tempfile.gettempdir()) / "cloudprovider-ci-k3d.lock"
"""Held while the clusters are up: what one run has brought up is not taken down under another one."""
PACKAGES: Final = ("frr",)
"""What manifests/image/Dockerfile would install."""
UP_LIMIT_SECONDS: Final = 480.0
"""Where nothing but Go's build cache is there, ``up`` takes two or three minutes; without that, half an hour more."""
LANE_LIMIT_SECONDS: Final = 1500.0
""".ci/run is to take less than an hour, and what comes before less than half of that."""
LANE: Final = ("-m", "pytest", "-p", "no:cacheprovider", "--lane=k3d", "--durations=15", "e2e/k3d")


class RigError(LabError):
    """There is nothing to run the lane on."""


class Rig:
    """Where the clusters come from: ``folder``'s programs; None: docker, k3d and kubectl are there."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def up(self, *, limit: float) -> Iterator[Mapping[str, str]]:
        """It is up; the environment that it is reached by. Raises RigError where it is not up in time."""
        if self.folder is None:
            yield os.environ
            return
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(LOCK.open("w"))
            try:
                wait_for("another run's end", partial(_locked, lock), timeout=limit, period=1)
                end = ["true"] if self._environment() else self._down  # who found it up leaves it so
                keeper = stack.enter_context(Keeper(self._up, end, LOGS / "k3d-up.log"))
                stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)
                keeper.wait_begun(limit)
            except LabError as error:
                raise RigError(" ".join(str(error).split())) from error
            if not (environment := self._environment()):
                raise RigError(f"{self.folder}/env prints nothing")
            yield environment

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


def _locked(lock: IO[str]) -> bool:
    """Raises OSError while another process has it."""
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def find_rig(folder: Path | None) -> Rig | str:
    """What the lane can run on here, or in one sentence why there is nothing."""
    if folder is not None and (folder / "up").exists():
        return Rig(folder.resolve())
    why = unusable()
    if not why:
        return Rig(None)
    return why if folder is None else f"there is no {folder / 'up'}, and {why}"


def make_wheels() -> None:
    """What the image is made of. Raises LabError."""
    if subprocess.run([sys.executable, "manifests/image/wheels.py"], cwd=lanes.ROOT, check=False).returncode != 0:
        raise LabError("there are no wheels to make the image of")


def run_lane(rig: Rig) -> int:
    """Run e2e/k3d; return its exit code. Raises LabError."""
    began = time.monotonic()
    with rig.up(limit=UP_LIMIT_SECONDS) as environment:
        make_wheels()
        lane = partial(subprocess.run, [sys.executable, *LANE], cwd=lanes.ROOT, env=environment, check=False)
        try:
            code = lane(timeout=LANE_LIMIT_SECONDS).returncode
        except subprocess.TimeoutExpired as error:  # it was killed; what it had begun takes itself down
            raise LabError(f"not done within {LANE_LIMIT_SECONDS / 60:g} min") from error
    print(f"the k3d lane took {time.monotonic() - began:.0f} s", flush=True)
    return code


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k3d", type=Path, metavar="FOLDER")
    rig = find_rig(parser.parse_args().k3d)
    began = time.monotonic()
    code = lanes.main()
    try:
        if isinstance(rig, str):
            raise RigError(rig)
        code = run_lane(rig) or code
    except RigError as error:
        print(f"the k3d lane was left out: {error}")
    except LabError as error:
        print(f"the k3d lane: {error}", file=sys.stderr)
        code = 1
    print(f"all tests took {(time.monotonic() - began) / 60:.1f} min")
    return code


if __name__ == "__main__":
    sys.exit(main())
