"""Prometheus' own checker, of whatever version: as somebody installed it, or as ``tests/lab/setup`` fetched it."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.build import BuildError


def find_promtool() -> Path:
    """Where it is. Raises BuildError when it is not there."""
    found = shutil.which("promtool")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(found) if found else Path(base) / "cloudprovider" / "tools" / "promtool"
    if not path.exists():
        raise BuildError("promtool is not there: run `make setup`")
    return path


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run it; return what it says. Raises AssertionError with that where it finds fault."""
    done = subprocess.run([find_promtool(), *arguments], input=stdin, capture_output=True, timeout=120, check=False)
    told = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, told
    return told
