"""What the bench of the data plane needs beside the project: ``python -m tests.bench.dataplane.prepare``.

The peers come from Debian's packages, which are unpacked into the cache and not installed: installing a daemon's
package would start it on the machine. ``nftlb``, ``haproxy`` and ``keepalived``, and those of their libraries that lack
here. What is installed already is used as it is. The load's program (``load/main.go``) is built with the Go that the
lab needs.

Runs outside of the sandbox, which has no way to a package archive.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.lab.build import cache_root

PEERS: Final = ("nftlb", "haproxy", "keepalived")
LOAD: Final = Path("build/load")
_FOLDER: Final = cache_root().parent / "peers"
_PATH: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class PrepareError(Exception):
    """Something can't be had; the message says what."""


def peer(name: str) -> Path:
    """Where a peer's program is. Raises PrepareError."""
    for found in (shutil.which(name, path=_PATH), _FOLDER / "usr/sbin" / name):
        if found is not None and Path(found).is_file():
            return Path(found)
    raise PrepareError(f"{name} is not here: run python -m tests.bench.dataplane.prepare (outside of the sandbox)")


def environment() -> dict[str, str]:
    """What a peer's program needs to find its libraries."""
    return {"LD_LIBRARY_PATH": os.pathsep.join(str(place) for place in (_FOLDER / "usr/lib").glob("*-linux-gnu*"))}


def prepare() -> None:
    """Unpack what lacks, build the load. Raises PrepareError."""
    lacking = [name for name in PEERS if not _is_here(name)]
    if lacking:
        _unpack(lacking)
    build_load()


def build_load() -> None:
    """Build the load's program; Go has all that it needs. Raises PrepareError."""
    LOAD.parent.mkdir(exist_ok=True)
    command = ["go", "build", "-buildvcs=false", "-o", str(LOAD.resolve()), "."]
    where = Path(__file__).parent / "load"
    _run(
        command, "building the load", cwd=where, settings={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    )


def _is_here(name: str) -> bool:
    try:
        peer(name)
    except PrepareError:
        return False
    return True


def _unpack(packages: list[str]) -> None:
    print(f"unpacking {', '.join(packages)} from Debian's packages into {_FOLDER}", flush=True)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        Path(folder, "partial").mkdir()
        options = ["-qy", "--no-install-recommends", "--download-only", "-o", f"Dir::Cache::archives={folder}"]
        _run(["apt-get", "update", "-q"], "apt-get update")
        _run(["apt-get", "install", *options, *packages], "downloading them", settings={"LC_ALL": "C"})
        _FOLDER.mkdir(parents=True, exist_ok=True)
        for package in Path(folder).glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(_FOLDER)], f"unpacking {package.name}")


def _run(command: list[str], what: str, *, cwd: Path | None = None, settings: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | (settings or {}),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except FileNotFoundError as error:
        raise PrepareError(f"{what}: {error.filename} is not on PATH") from error
    if done.returncode != 0:
        raise PrepareError(f"{what}: `{' '.join(command)}`:\n{(done.stderr or done.stdout).strip()}")


if __name__ == "__main__":
    try:
        prepare()
    except PrepareError as failed:
        sys.exit(f"prepare: {failed}")
