"""The image's bill of materials (CycloneDX 1.6, JSON): the Python packages of the environment that runs this, with
the hashes of the wheels they came from, and the Debian packages beneath. Standard library only: it runs in the build.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

PROJECT: Final = "cloudprovider"

Json = dict[str, Any]


def normalized(name: str) -> str:
    """A package's name as purl and wheels' file names have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(wheels: Path | None, dpkg: Path | None) -> Json:
    """The document; ``wheels``: the folder installed from, ``dpkg``: the status file of Debian's package manager."""
    hashes = dict(_hashes(wheels)) if wheels else {}
    python = {normalized(d.name): d for d in distributions()}
    project = python.pop(PROJECT)
    packages = [_python(d, hashes) for _, d in sorted(python.items())]
    system = list(_debian(dpkg.read_text(encoding="utf-8"))) if dpkg and dpkg.exists() else []
    root = _python(project, hashes) | {"type": "application"}
    references = {name: _purl(d) for name, d in [*python.items(), (PROJECT, project)]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": [*packages, *system],
        "dependencies": [
            {"ref": reference, "dependsOn": sorted(set(_needs(d, references)))}
            for name, d in sorted({**python, PROJECT: project}.items())
            for reference in (references[name],)
        ],
    }


def _python(package: Distribution, hashes: dict[tuple[str, str], str]) -> Json:
    name, purl = normalized(package.name), _purl(package)
    component: Json = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": package.version,
        "purl": purl,
    }
    if summary := _said(package, "Summary"):
        component["description"] = summary
    if expression := _said(package, "License-Expression"):
        component["licenses"] = [{"expression": expression}]
    elif (text := _said(package, "License")) and len(text) < 100:
        component["licenses"] = [{"license": {"name": text}}]
    if digest := hashes.get((name, package.version)):
        component["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return component


def _said(package: Distribution, field: str) -> str:
    """A field of its metadata; "" without it."""
    return package.metadata[field] if field in package.metadata else ""  # noqa: SIM401 - it has no get() before 3.12


def _purl(package: Distribution) -> str:
    return f"pkg:pypi/{normalized(package.name)}@{quote(package.version)}"


def _needs(package: Distribution, references: dict[str, str]) -> Iterator[str]:
    for text in package.requires or ():
        name = re.match(r"[A-Za-z0-9._-]+", text)
        if name and "extra ==" not in text and (found := references.get(normalized(name[0]))):
            yield found


def _hashes(wheels: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """By name and version, as wheels' file names begin (PEP 427)."""
    for path in wheels.glob("*.whl"):
        name, version, *_ = path.name.split("-")
        yield (normalized(name), version), hashlib.sha256(path.read_bytes()).hexdigest()


def _debian(status: str) -> Iterator[Json]:
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status") != "install ok installed":
            continue
        name, version = fields["Package"], fields["Version"]
        purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={fields['Architecture']}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--dpkg", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(bill(options.wheels, options.dpkg), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
