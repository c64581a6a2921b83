"""What the README and the examples tell a user to write is understood, all of it."""

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest
import yaml

from cloudprovider.core.annotations import FIXED_ADDRESSES, KNOWN, KUBE_VIP_HOSTNAME, PREFIX
from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.exchange import Listener, LoadBalancerRequest
from cloudprovider.core.rules.loadbalancers import advise, check_load_balancer
from cloudprovider.core.rules.verdict import Verdict
from cloudprovider.core.translate import Claim, Classes, translate

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "manifests" / "examples" / "guest-services.yaml"
MACHINES = ROOT / "manifests" / "examples" / "host-virtual-machines.yaml"
MACHINES_PAGE = ROOT / "docs" / "virtual-machines.md"
LB_KIND = "LoadBalancer"
README = ROOT / "README.md"
FENCED = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def requests(text: str) -> Iterator[tuple[str, LoadBalancerRequest]]:
    """Each Service of ``text``, after what an API server adds to it, and what it asks for."""
    for document in yaml.safe_load_all(text):
        if document and document["kind"] == "Service":
            for i, port in enumerate(document["spec"]["ports"]):
                port["nodePort"] = 30000 + i
            document["metadata"].setdefault("namespace", "default")
            service = msgspec.convert(document, Service)
            assert Classes(default=True).claim(service) is Claim.OURS
            yield service.metadata.name, translate(service)


def test_the_examples() -> None:
    assert dict(requests(EXAMPLES.read_text())) == {
        "web": LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30000),), network="default/vlan8"),
        "dns": LoadBalancerRequest(
            listeners=(Listener("dns", "UDP", 53, 30000), Listener("dns-tcp", "TCP", 53, 30001)),
            ip_pool="shop",
            network="default/vlan8",
            addresses=(ip_address("10.0.8.120"),),
            external_traffic_policy="Local",
            sources=(ip_network("10.0.0.0/8"),),
        ),
        "dns-metrics": LoadBalancerRequest(
            listeners=(Listener("metrics", "TCP", 9153, 30000),), primary_service="default/dns"
        ),
        "printer": LoadBalancerRequest(
            listeners=(Listener("ipp", "TCP", 631, 30000),),
            ipam="dhcp",
            network="default/vlan8",
            dhcp_hostname="printer",
        ),
        "mail": LoadBalancerRequest(
            listeners=(Listener("smtp", "TCP", 25, 30000),),
            network="default/vlan8",
            addresses=(ip_address("10.0.8.130"),),
        ),
    }


@pytest.mark.parametrize("path", [MACHINES, MACHINES_PAGE], ids=lambda p: str(p.name))
def test_load_balancers_for_machines(path: Path) -> None:
    """Neither refused nor warned of."""
    text = path.read_text()
    blocks = FENCED.findall(text) if path.suffix == ".md" else [text]
    found = [msgspec.convert(d, LoadBalancer) for b in blocks for d in yaml.safe_load_all(b) if d["kind"] == LB_KIND]
    assert found
    for lb in found:
        assert check_load_balancer(lb, None) + advise(lb) == Verdict(), lb.metadata.name


def test_the_readme() -> None:
    found = [each for block in FENCED.findall(README.read_text()) for each in requests(block)]
    wanted = LoadBalancerRequest(listeners=(Listener("", "TCP", 80, 30000),), network="default/vlan8")
    assert found == [("web", wanted)]


def test_the_readme_names_every_annotation() -> None:
    written = README.read_text()
    table = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| `[a-z-]+`.* \|$", written, re.MULTILINE))))
    assert {name.removeprefix(PREFIX) for name in KNOWN} <= table
    assert all(f"`{name}`" in written for name in (*FIXED_ADDRESSES[1:], KUBE_VIP_HOSTNAME))
