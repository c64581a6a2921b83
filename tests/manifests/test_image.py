"""The image's recipe, as far as it can be judged without a container engine; the k3d lane builds and runs it."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from manifests.image import sbom, wheels

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "manifests" / "image" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

Instruction = tuple[str, str]


def read(text: str) -> list[Instruction]:
    """The instructions with their arguments, lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


@pytest.fixture(scope="module")
def recipe() -> list[Instruction]:
    return read(DOCKERFILE.read_text())


def arguments(recipe: list[Instruction], word: str) -> list[str]:
    return [rest for found, rest in recipe if found == word]


def test_every_stage_stands_on_the_base_that_the_builder_names(recipe: list[Instruction]) -> None:
    assert recipe[0][0] == "ARG"
    assert recipe[0][1].startswith("BASE_IMAGE="), "named before the first stage"
    assert not re.search(r":latest$|/[^:]+$", recipe[0][1]), "a base without a version changes by itself"
    known = {"${BASE_IMAGE}"}
    for stage in arguments(recipe, "FROM"):
        image, *name = stage.split(" AS ")
        assert image in known, stage
        known.update(name)


def test_any_builder_will_do(recipe: list[Instruction]) -> None:
    assert not arguments(recipe, "ADD"), "it fetches and unpacks by itself; COPY does neither"
    for run in arguments(recipe, "RUN"):
        assert not run.startswith("--"), run
        assert "<<" not in run, run
        assert run.startswith("set -eu;"), "a failed step must end the build"
        assert subprocess.run(["sh", "-n"], input=run, text=True, check=False).returncode == 0, run


def test_packages_come_from_the_folder_of_wheels_alone(recipe: list[Instruction]) -> None:
    (install,) = re.findall(r"pip install[^;]*", " ".join(arguments(recipe, "RUN")))
    assert {"--no-index", "--find-links", "--no-cache-dir"} <= set(shlex.split(install))


def test_it_gives_up_root_and_starts_the_program_itself(recipe: list[Instruction]) -> None:
    user, group = arguments(recipe, "USER")[-1].split(":")
    assert (int(user), int(group)) == (65532, 65532), "as numbers: runAsNonRoot can't judge a name"
    last = [word for word, _ in recipe]
    assert "RUN" not in last[last.index("USER") :]
    (entry,) = arguments(recipe, "ENTRYPOINT")
    assert json.loads(entry)[0] in PROJECT["scripts"], "no shell between Kubernetes' SIGTERM and the program"


def test_it_says_what_it_is(recipe: list[Instruction]) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', " ".join(arguments(recipe, "LABEL"))))
    assert labels == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "base.name": "${BASE_IMAGE}",
    }
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", "image"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert f"VERSION={PROJECT['version']} " in told


def test_nothing_is_sent_to_the_builder_but_what_it_copies(recipe: list[Instruction]) -> None:
    first, *others = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*"
    copied = {rest.split()[0] for rest in arguments(recipe, "COPY") if not rest.startswith("--from=")}
    assert {line.removeprefix("!").removesuffix("/*.whl") for line in others} == copied


def test_what_the_package_needs_is_pinned_and_nothing_of_development(recipe: list[Instruction]) -> None:
    names = wheels.closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"][wheels.EXTRA]])
    assert {"aiohttp", "grpcio", "kopf", "msgspec", "multidict", "cffi", "opentelemetry-sdk"} <= names
    assert f'"{PROJECT["name"]}[{wheels.EXTRA}]==' in " ".join(arguments(recipe, "RUN"))
    assert names <= wheels.pinned(wheels.LOCK.read_text()).keys()
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "grpcio-tools"}


def test_what_is_left_out_of_the_image_is_not_imported(recipe: list[Instruction]) -> None:
    (left_out,) = re.findall(r"rm -r \S+/site-packages/(\S+)", " ".join(arguments(recipe, "RUN")))
    code = (
        "import pkgutil, sys, cloudprovider, kopf\n"
        "for module in pkgutil.walk_packages(cloudprovider.__path__, 'cloudprovider.'):\n"
        "    __import__(module.name)\n"
        "import kubernetes.client, kubernetes.config.kube_config\n"
        f"sys.exit({left_out.replace('/', '.')!r} in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


STATUS = """Package: libnftables1
Status: install ok installed
Architecture: amd64
Version: 1.0.6-2+deb12u2
Description: a library
 with more lines

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_the_bill_of_materials_names_all_that_is_in_it(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    (tmp_path / "msgspec-0.0-py3-none-any.whl").write_bytes(b"another version")
    document = sbom.bill(tmp_path, status)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    own = document["metadata"]["component"]
    assert own["type"] == "application"
    assert own["purl"] == f"pkg:pypi/cloudprovider@{PROJECT['version']}"
    components = {component["name"]: component for component in document["components"]}
    assert wheels.closure(PROJECT["dependencies"]) <= components.keys()
    assert components["libnftables1"]["purl"] == "pkg:deb/debian/libnftables1@1.0.6-2%2Bdeb12u2?arch=amd64"
    assert "gone" not in components
    assert "hashes" not in components["msgspec"], "the hash of a wheel that is not installed"
    references = [own["bom-ref"], *(component["bom-ref"] for component in document["components"])]
    assert len(references) == len(set(references))
    edges = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    assert components["msgspec"]["bom-ref"] in edges[own["bom-ref"]]
    assert all(needed in references for needs in edges.values() for needed in needs)


def test_the_bill_of_materials_has_the_hashes_of_the_wheels(tmp_path: Path) -> None:
    version = next(c for c in sbom.bill(None, None)["components"] if c["name"] == "msgspec")["version"]
    (tmp_path / f"msgspec-{version}-cp311-cp311-linux_x86_64.whl").write_bytes(b"wheel")
    component = next(c for c in sbom.bill(tmp_path, None)["components"] if c["name"] == "msgspec")
    assert component["hashes"] == [
        {"alg": "SHA-256", "content": "ba59926159d2aa256eb8739b8da7e2b574b960e1202c6d624cbe981cef996c91"}
    ]
