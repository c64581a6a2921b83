"""``python -m e2e.k3d.sweep PREFIX FOLDER``: remove whatever a run of the lane has in Docker, by the prefix of its
names, and its folder. Layers of its images stay, for the next run's cache.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Final

from e2e.k3d.commands import run
from tests.lab.process import LabError

KINDS: Final = {
    "container": ("docker ps --all --quiet --filter name={}-", "docker rm --force --volumes"),
    "volume": ("docker volume ls --quiet --filter name={}-", "docker volume rm --force"),
    "network": ("docker network ls --quiet --filter name={}-", "docker network rm"),
    "image": (
        "docker image ls --filter reference=*:{}* --format {{{{.Repository}}}}:{{{{.Tag}}}}",
        "docker image rm --no-prune",
    ),
}
LIMIT_SECONDS: Final = 120
PAUSE_SECONDS: Final = 0.5


def left(prefix: str) -> dict[str, Sequence[str]]:
    """What there is of a run, by kind."""
    found = {kind: run(*find.format(prefix).split()).split() for kind, (find, _) in KINDS.items()}
    return {kind: names for kind, names in found.items() if names}


def sweep(prefix: str) -> None:
    """Remove it, until there is nothing: a command that has outlived its caller may still be making more.

    Raises LabError for what stays.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while found := left(prefix):
        for kind, names in found.items():
            try:
                run(*KINDS[kind][1].split(), *names)
            except LabError as error:  # somebody else was faster, or it is in use by what goes next
                if time.monotonic() > deadline:
                    raise LabError(f"{kind}s of {prefix} stay: {error}") from error
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    sweep(sys.argv[1])
    shutil.rmtree(sys.argv[2], ignore_errors=True)
