"""``make wheels``: the package and all that it needs at run time as wheels in build/wheels.

Versions and hashes are those of requirements-dev.txt; what only development needs is left out.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = ROOT / "requirements-dev.txt"
REQUIREMENTS: Final = "requirements.txt"
"""Stands beside the wheels: what they were downloaded for."""
EXTRA: Final = "traces"
"""The image can do all that the package can."""

_PIP: Final = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def closure(requirements: list[str]) -> set[str]:
    """The names of all packages that these requirements bring with them here, as installed in this environment."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        for text in distribution(name).requires or ():
            marker = Requirement(text).marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(text.partition(";")[0])
    return found


def pinned(lock: str) -> dict[str, str]:
    """The entries of a requirements file with hashes, by name."""
    entries = re.findall(r"^[A-Za-z0-9].*(?:\n[ \t].*)*", lock, re.MULTILINE)
    return {canonicalize_name(entry.partition("==")[0].strip()): entry for entry in entries}


def make(out: Path) -> None:
    """Fill ``out`` with exactly what is needed. Raises CalledProcessError; KeyError for what is not pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = pinned(LOCK.read_text(encoding="utf-8"))
    requirements_of = [*project["dependencies"], *project["optional-dependencies"][EXTRA]]
    wanted = "\n".join(entries[name] for name in sorted(closure(requirements_of)))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        fresh = Path(folder) / "wheels"
        fresh.mkdir()
        requirements = fresh / REQUIREMENTS
        requirements.write_text(wanted + "\n", encoding="utf-8")
        if (out / REQUIREMENTS).exists() and (out / REQUIREMENTS).read_text(encoding="utf-8") == wanted + "\n":
            for path in out.glob("*.whl"):
                if not path.name.startswith(f"{project['name']}-"):
                    shutil.copy(path, fresh)
        else:
            download = ("download", "--require-hashes", "--no-deps", "--only-binary=:all:", "--dest", str(fresh))
            subprocess.run([*_PIP, *download, "--requirement", str(requirements)], check=True)
        # From a copy: a build leaves its own traces beside the source.
        source = Path(folder) / "source"
        source.mkdir()
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(ROOT / "cloudprovider", source / "cloudprovider", ignore=shutil.ignore_patterns("__pycache__"))
        build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(fresh), str(source))
        subprocess.run([*_PIP, *build], check=True)
        shutil.rmtree(out)
        fresh.rename(out)
    print(f"{len(list(out.glob('*.whl')))} wheels in {out}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "wheels")
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
