"""kubectl as the tests use it: the real program against a real API server."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 30


class Refused(Exception):
    """kubectl ended with an error; the text is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl with one kubeconfig; ``options`` (as ``--as=USER``) go with every call."""

    program: Path
    kubeconfig: Path
    options: tuple[str, ...] = ()

    def __call__(self, *arguments: str, stdin: str | Mapping[str, Any] | None = None) -> str:
        """Return what it prints. Raises Refused."""
        done = subprocess.run(
            [str(self.program), f"--kubeconfig={self.kubeconfig}", *self.options, *arguments],
            input=json.dumps(stdin) if isinstance(stdin, Mapping) else stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise Refused(done.stderr + done.stdout)
        return done.stdout

    def json(self, *arguments: str, stdin: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the object it prints."""
        result: dict[str, Any] = json.loads(self(*arguments, "-o", "json", stdin=stdin))
        return result

    def acting_as(self, user: str) -> "Kubectl":
        """The same as another user (impersonation)."""
        return Kubectl(self.program, self.kubeconfig, (*self.options, f"--as={user}"))
