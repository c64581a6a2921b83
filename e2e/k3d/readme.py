"""The commands of README.md, taken out of it and run as they stand there."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from e2e.k3d.machines import COMMAND_LIMIT_SECONDS, ROOT
from tests.lab.process import LabError

_SETTING: Final = re.compile(r"^([A-Z]+)=.*$", re.MULTILINE)


def blocks(heading: str) -> list[str]:
    """The shell blocks of a chapter, in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (chapter,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found: list[str] = re.findall(r"^```sh\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    return found


def run(block: str, folder: Path, kubeconfig: Path, settings: Mapping[str, str] | None = None) -> None:
    """Run a block in ``folder``, a copy of the tree, with the reader's own ``settings`` in place of the example's: of
    each that it has. Raises LabError with what the command that failed said."""
    own = dict(settings or {})

    def mine(found: re.Match[str]) -> str:
        return f"{found[1]}={own.pop(found[1])!r}"

    script = _SETTING.sub(mine, block)
    if own:
        raise LabError(f"README.md asks for no {', '.join(own)}")
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | {"KUBECONFIG": str(kubeconfig), "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * COMMAND_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"README.md, as it stands there:\n{done.stderr[-4000:]}")
