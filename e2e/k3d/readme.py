"""The commands of README.md and of its pages, taken out of them and run as they stand there."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from e2e.k3d.commands import COMMAND_LIMIT_SECONDS
from e2e.k3d.machines import ROOT
from tests.lab.build import BuildError, find
from tests.lab.process import LabError

README: Final = "README.md"
_SETTING: Final = re.compile(r"^([A-Z]+)=.*$", re.MULTILINE)


class Installing(NamedTuple):
    """Three blocks: what comes before the host's part, between them the operator edits; that; a guest's part."""

    before: str
    host: str
    guest: str


def blocks(heading: str, page: str = README, *, tree: Path = ROOT) -> list[str]:
    """The shell blocks of a chapter, in their order."""
    text = (tree / page).read_text(encoding="utf-8")
    (chapter,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found: list[str] = re.findall(r"^```sh\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    return found


def run(
    block: str, folder: Path, kubeconfig: Path, settings: Mapping[str, str] | None = None, *, tree: Path = ROOT
) -> None:
    """Run a block in ``folder``, a copy of the ``tree``, with the reader's own ``settings`` in place of the example's:
    of each that it has. Raises LabError with what the command that failed said."""
    own = dict(settings or {})

    def mine(found: re.Match[str]) -> str:
        return f"{found[1]}={own.pop(found[1])!r}"

    script = _SETTING.sub(mine, block)
    if own:
        raise LabError(f"the commands ask for no {', '.join(own)}")
    path = os.pathsep.join([str(ROOT / ".venv" / "bin"), *_helm(), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | {"KUBECONFIG": str(kubeconfig), "PATH": path, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=2 * COMMAND_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"the commands as they stand there:\n{done.stderr[-4000:]}")


def _helm() -> list[str]:
    """Where the lab has built it, or nowhere."""
    try:
        return [str(find("helm").parent)]
    except BuildError:
        return []
