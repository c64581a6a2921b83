"""The pages: every link leads somewhere, and what they name is there."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import yaml

from cloudprovider.core import reasons
from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.api.pool import IPPool, IPPoolSpec
from cloudprovider.core.conditiontypes import CONDITIONS, Type
from cloudprovider.core.marks import MARKS
from cloudprovider.core.metrics.catalogue import PROGRAMS
from cloudprovider.core.news import NEWS, News
from cloudprovider.core.rules.pools import check_pool
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.core.rulings import REQUEST
from cloudprovider.core.translate import translate
from docs import generate

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

WRITTEN = [page for page in PAGES if page.parent != generate.FOLDER]
"""By hand."""


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=_id)
each_written_page = pytest.mark.parametrize("page", WRITTEN, ids=_id)

PREFIXED = re.compile(r"\b(?:cloudprovider|loadbalancer|guestcluster)\.harvesterhci\.io/[A-Za-z0-9-]+")
NOT_MARKS = re.compile(r"/(v1(beta1)?|load-balancer|SCTPNotSupported|ProtocolNotSupported|healthcheck-|Ready)$")

OTHERS_WORDS = frozenset(
    {
        *("LoadBalancer", "IPPool", "IPBlock", "GuestCluster", "EndpointSlices", "NetworkAttachmentDefinition"),
        *("VirtualMachine", "VirtualMachineInstance", "ValidatingWebhookConfiguration", "LoadBalancerList"),
        *("ExplanationList", "PoolList", "TraceList", "DrainList", "CheckList", "EnsureLoadBalancer"),
        *("DeleteLoadBalancer", "WatchLoadBalancers", "RenewCertificate"),
        *("ClientIP", "HttpOnly", "SameSite"),  # Kubernetes', HTTP's
        *("IPAddressPool", "L2Advertisement", "BGPPeer", "BGPAdvertisement"),  # MetalLB's
        *("PodMonitor", "PrometheusRule"),  # the Prometheus operator's
    }
)
OTHERS_FLAGS = frozenset(
    {
        *("--context", "--server-side", "--timeout", "--help", "--values", "--namespace", "--kube-context"),
        *(
            "--wait",
            "--cert",
            "--key",
            "--from-literal",
        ),  # kubectl delete; kubectl create secret  # kubectl's and Helm's
        *("--force-conflicts", "--ignore-not-found", "--type", "--replicas", "--no-headers", "--all", "--port"),
        *("--name", "--target-port", "--for", "--set", "--config"),
        *("--controllers", "--load-balancer-ip"),  # of a guest's cloud provider; kubectl expose
        *("--durations", "--strict"),  # pytest's, mypy's
    }
)


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _links(page):
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in _anchors(to), f"{target}: there is no such heading"


def test_every_page_is_linked_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in _links(index)}
    assert {path for path in PAGES if path != index} <= linked


@each_written_page
def test_every_annotation_and_label_that_is_named_is_one(page: Path) -> None:
    known = {mark.name for mark in MARKS}
    named = {name for name in PREFIXED.findall(page.read_text()) if not NOT_MARKS.search(name)}
    assert named - known == set()


@each_written_page
def test_every_word_for_programs_is_a_reason_a_condition_or_a_kind(page: Path) -> None:
    known = {word for condition in CONDITIONS for word in condition.reasons} | set(get_args(Type))
    known |= {str(one.reason) for one in NEWS if isinstance(one, News)}
    known |= {str(word) for word in (*reasons.VERDICT, *reasons.PLACE, *REQUEST)}
    known |= OTHERS_WORDS
    named = re.findall(r"`([A-Z][A-Za-z0-9]*[a-z][A-Z][A-Za-z0-9]*|DHCP[A-Z][A-Za-z]+)`", page.read_text())
    assert set(named) - known == set()


@each_written_page
def test_every_metric_is_one(page: Path) -> None:
    known = {metric.name for exported in PROGRAMS.values() for metric in exported}
    named = set(re.findall(r"\bcloudprovider_(?:guest|host|agent|console|queue|kube)_[a-z_]+", page.read_text()))
    assert {name for name in named if re.sub("_(bucket|count|sum)$", "", name) not in known} == set()


@each_written_page
def test_every_flag_is_one(page: Path) -> None:
    reference = (generate.FOLDER / "settings.md").read_text()
    known = set(re.findall(r"--[a-z][a-z0-9-]+", reference)) | OTHERS_FLAGS
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", page.read_text()))
    assert named - known == set()


@each_written_page
def test_every_field_is_one(page: Path) -> None:
    reference = (generate.FOLDER / "fields.md").read_text() + (generate.FOLDER / "annotations.md").read_text()
    known = {name.replace("[]", "") for name in re.findall(r"`((?:spec|status)\.[A-Za-z.\[\]]+)`", reference)}
    for name in re.findall(r"`((?:spec|status)\.[A-Za-z.\[\]]+)[`:]", page.read_text()):
        plain = name.replace("[]", "")
        assert plain in known or plain in OTHERS_FIELDS, name


OTHERS_FIELDS = frozenset(
    {
        "spec.addresses",  # MetalLB's too
        "status.loadBalancer",
        "status.loadBalancer.ingress",
        "spec.template.metadata.labels",  # KubeVirt's
        "spec.template.metadata.annotations",
    }
)


FENCED = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["pools", "dhcp", "fixed-and-shared-addresses"])
def test_what_a_how_to_tells_to_write_is_understood(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    documents = [document for block in FENCED.findall(text) for document in yaml.safe_load_all(block)]
    assert documents
    for document in documents:
        if document["kind"] == "IPPool":
            pool = msgspec.convert(document, IPPool)
            assert check_pool(pool, None, (), ()) == Verdict()
            assert set(document["spec"]) <= set(IPPoolSpec.__struct_encode_fields__)
        else:
            for i, port in enumerate(document["spec"]["ports"]):
                port["nodePort"] = 30000 + i
            document["metadata"]["namespace"] = "default"
            translate(msgspec.convert(document, Service))


def _links(page: Path) -> Iterator[str]:
    """The relative ones, out of what is not code."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


@cache
def _anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
