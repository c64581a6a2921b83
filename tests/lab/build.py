"""The Kubernetes programs that the lab runs, and Helm: found, or built from Go modules (``python -m tests.lab.build``).

No release can be downloaded where only package registries are reached, so the programs are built from source at the
versions of ``controlplane/*/go.mod`` and kept in ``$XDG_CACHE_HOME/cloudprovider/controlplane/KEY``, outside of the
checkout. The first build takes some ten minutes on two cores, later ones find what is there.

A program of the right version in ``$KUBEBUILDER_ASSETS`` or on PATH is used instead.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent / "controlplane"
KUBERNETES_VERSION = "1.37.2"
ETCD_VERSION = "3.7.3"
HELM_VERSION = "4.3.1"
MINIMUM_GO = (1, 26)
BUILD_LIMIT_SECONDS = 3600


@dataclass(frozen=True)
class Program:
    """One program: ``module`` is the folder of its go.mod, ``probe`` prints its version."""

    name: str
    module: str
    package: str
    version: str
    probe: tuple[str, ...] = ("--version",)


def _kubernetes(name: str, *probe: str) -> Program:
    return Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", KUBERNETES_VERSION, probe or ("--version",))


PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3", ETCD_VERSION),
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-proxy"),
        _kubernetes("kubectl", "version", "--client"),
        Program("helm", "helm", "helm.sh/helm/v4/cmd/helm", HELM_VERSION, ("version", "--short")),
    )
}


class BuildError(Exception):
    """The programs can't be had; the message says what to do."""


@functools.cache
def find(name: str) -> Path:
    """Where a program is. Raises BuildError when it is neither there nor built."""
    program = PROGRAMS[name]
    path = _installed(program) or _cached(program)
    if path is None:
        raise BuildError(f"{name} {program.version} is not built yet: run `make controlplane` (ten minutes, once)")
    return path


def _installed(program: Program) -> Path | None:
    """The program as somebody else installed it, if its version is ours."""
    places = [os.environ.get("KUBEBUILDER_ASSETS", ""), *os.environ.get("PATH", "").split(os.pathsep)]
    for place in filter(None, places):
        path = Path(place) / program.name
        if not os.access(path, os.X_OK):
            continue
        try:
            told = subprocess.run(
                [path, *program.probe],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if re.search(rf"(?<![\d.]){re.escape(program.version)}(?![\d.])", told.stdout):
            return path
    return None


def _cached(program: Program) -> Path | None:
    for place in cache_root().glob(f"*/{program.name}"):
        if place.parent.name.startswith(_key(program.module)):
            return place
    return None


def cache_root() -> Path:
    """The folder that outlives checkouts."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cloudprovider" / "controlplane"


@functools.cache
def _key(module: str) -> str:
    """Changes whenever what would be built changes."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((MODULES / module / name).read_bytes())
    digest.update("\0".join([go_version(), *_flags(module)]).encode())
    return f"{module}-{digest.hexdigest()[:16]}"


@functools.cache
def go_version() -> str:
    """The Go that would build, as it tells it; "none" without one (what is cached for "none" is nothing)."""
    go = shutil.which("go")
    if go is None:
        return "none"
    told = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=True)
    return told.stdout.strip()


def _flags(module: str) -> list[str]:
    link = "-s -w"
    if module == "kubernetes":
        major, minor, _ = KUBERNETES_VERSION.split(".")
        component = "k8s.io/component-base/version"
        link += f" -X {component}.gitVersion=v{KUBERNETES_VERSION}"
        link += f" -X {component}.gitMajor={major} -X {component}.gitMinor={minor}"
    if module == "helm":
        link += f" -X helm.sh/helm/v4/internal/version.version=v{HELM_VERSION}"
    return ["-trimpath", "-ldflags", link]


def build(names: list[str]) -> None:
    """Build what is missing of ``names``. Raises BuildError."""
    missing = [PROGRAMS[name] for name in names if not (_installed(PROGRAMS[name]) or _cached(PROGRAMS[name]))]
    if not missing:
        return
    _check_go()
    cache_root().mkdir(parents=True, exist_ok=True)
    with _only_one():
        missing = [program for program in missing if not _cached(program)]
        for number, program in enumerate(missing, 1):
            _build_one(program, f"[{number}/{len(missing)}] {program.name} {program.version}")
    find.cache_clear()


def _check_go() -> None:
    found = re.match(r"go(\d+)\.(\d+)", go_version())
    if found is None:
        raise BuildError(
            f"Go is not on PATH: install Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} or later (https://go.dev/doc/install), or "
            f"name a folder with the programs of Kubernetes {KUBERNETES_VERSION} and etcd {ETCD_VERSION} in "
            "KUBEBUILDER_ASSETS"
        )
    if (int(found[1]), int(found[2])) < MINIMUM_GO:
        raise BuildError(
            f"Go {found[1]}.{found[2]} is too old to build Kubernetes {KUBERNETES_VERSION}: "
            f"install Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} or later"
        )


@contextmanager
def _only_one() -> Iterator[None]:
    """Two builds at once would only make both slower."""
    with (cache_root() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another build is under way; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_one(program: Program, title: str) -> None:
    folder = cache_root() / _key(program.module)
    folder.mkdir(exist_ok=True)
    partial = folder / f".{program.name}.partial"
    environment = os.environ | {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
    }
    command = ["go", "build", *_flags(program.module), "-o", str(partial), program.package]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=MODULES / program.module, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _show_progress(process, title)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            if process.returncode != 0:
                partial.unlink(missing_ok=True)
        if process.returncode != 0:
            output.seek(0)
            tail = "\n".join(output.read().splitlines()[-30:])
            raise BuildError(
                f"building {program.name} failed: `{' '.join(command)}` in {MODULES / program.module}:\n{tail}"
            )
    partial.rename(folder / program.name)


def _show_progress(process: "subprocess.Popen[bytes]", title: str) -> None:
    """Tell what is being built and for how long: a ticking line on a terminal, plain lines elsewhere."""
    terminal = sys.stdout.isatty()
    began = time.monotonic()
    if not terminal:
        print(f"{title}: building", flush=True)
    while True:
        try:
            process.wait(timeout=1 if terminal else 60)
            break
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - began
            if elapsed > BUILD_LIMIT_SECONDS:
                raise BuildError(f"{title}: not built within {BUILD_LIMIT_SECONDS} s; giving up") from None
            if terminal:
                print(f"\r{title}: building, {elapsed:.0f} s", end="", flush=True)
            else:
                print(f"{title}: still building, {elapsed:.0f} s", flush=True)
    outcome = "built" if process.returncode == 0 else "FAILED"
    print(f"{chr(13) if terminal else ''}{title}: {outcome} in {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    began = time.monotonic()
    try:
        build(list(PROGRAMS))
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbuild: interrupted; what is built stays, the next run goes on from there", file=sys.stderr)
        return 130
    versions = f"Kubernetes {KUBERNETES_VERSION}, etcd {ETCD_VERSION} and Helm {HELM_VERSION}"
    print(f"{versions} are ready ({time.monotonic() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
