"""docs/reference is what the code says, and leaves nothing out."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import cloudprovider
from cloudprovider.core import annotations
from cloudprovider.core.conditiontypes import CONDITIONS
from cloudprovider.core.marks import MARKS
from cloudprovider.core.metrics.catalogue import PROGRAMS
from docs import generate

PACKAGE = Path(cloudprovider.__file__).parent

NO_MARKS = re.compile(
    r"/v1(beta1)?$"  # API versions
    r"|^kubernetes\.io/(tls|service-name)$|^endpointslice\."  # a Secret's type; Kubernetes' labels of a slice
    r"|/(load-balancer|SCTPNotSupported|ProtocolNotSupported)$"  # the class; errors of ports
    r"|/$"
)


def test_the_pages_are_fresh() -> None:
    have = {path.name: path.read_text() for path in generate.FOLDER.glob("*.md")}
    assert have == generate.pages(), "docs/reference is out of date: run `make generate`"


def test_every_annotation_label_and_finalizer_of_the_code_is_listed() -> None:
    said = {name for name in _strings() if not NO_MARKS.search(name)}
    said -= {condition.type for condition in CONDITIONS}
    assert said - {mark.name for mark in MARKS} == set()
    assert len(said) > 25


def test_every_annotation_of_a_service_is_listed_once() -> None:
    names = [mark.name for mark in MARKS]
    assert len(set(names)) == len(names)
    assert set(names) >= annotations.KNOWN
    assert all(annotations.is_read(mark.name) for mark in MARKS if mark.on == "Service" and mark.sort == "annotation")


def test_the_values_of_the_charts_are_all_there() -> None:
    page = generate.charts()
    for name in ("controller.settings.reserved-cidrs", "agent.networks", "loadBalancerClass", "replicas"):
        assert f"`{name}`" in page


def test_metrics_are_listed_by_program() -> None:
    page = generate.metrics()
    for program, exported in PROGRAMS.items():
        for metric in exported:
            (line,) = (line for line in page.splitlines() if f"| `{metric.name}` |" in line)
            assert program in line or line.startswith("| all |")


def _strings() -> Iterator[str]:
    """What in the code has the form of a qualified name."""
    for path in PACKAGE.rglob("*.py"):
        if "v1" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"([a-z0-9-]+\.)+(io|tf|com)/[A-Za-z0-9.-]*", text):
                yield text
