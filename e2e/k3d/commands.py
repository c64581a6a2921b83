"""Commands that are run to their end, as an operator types them."""

import subprocess
from pathlib import Path
from typing import Final

from tests.lab.process import LabError

COMMAND_LIMIT_SECONDS: Final = 180.0


def run(*command: str | Path, stdin: str = "", limit: float = COMMAND_LIMIT_SECONDS) -> str:
    """Run a command to its end; return what it prints. Raises LabError with what it complains of."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{' '.join(words)}: {error}") from error
    if done.returncode != 0:
        raise LabError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
