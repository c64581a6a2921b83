"""What the page and the example tell an operator to write is spoken, all of it."""

import re
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
import yaml

from cloudprovider.core.api.bgp import BGPAdvertisement, BGPPeer
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.bgpwish import Host, Objects, Outcome, Served, wish
from tests.core.bgp.objects import standing

ROOT = Path(__file__).parents[3]
PAGE, EXAMPLE = ROOT / "docs" / "bgp.md", ROOT / "manifests" / "examples" / "host-bgp.yaml"
HOST = Host(labels={"topology.kubernetes.io/zone": "rack-b"}, networks={"": standing("192.0.2.9/24")})
VIP = ip_address("203.0.113.7")


@pytest.mark.parametrize(("path", "peers"), [(PAGE, {"tor-a"}), (EXAMPLE, {"tor-a", "tor-b"})])
def test_what_is_shown_is_spoken(path: Path, peers: set[str]) -> None:
    text = path.read_text()
    if path == PAGE:
        text = "---\n".join(re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    written = list(yaml.safe_load_all(text))
    pools = [msgspec.convert(w, IPPool) for w in written if w["kind"] == "IPPool"]
    objects = Objects(
        peers=tuple(msgspec.convert(w, BGPPeer) for w in written if w["kind"] == "BGPPeer"),
        advertisements=tuple(msgspec.convert(w, BGPAdvertisement) for w in written if w["kind"] == "BGPAdvertisement"),
        pools={pool.metadata.name: pool.metadata.labels for pool in pools} or {"routed": {}},
        passwords={"tor-a": "secret"},
    )
    made = wish(HOST, objects, [Served("", VIP, "routed")])
    assert made.refused == {}
    assert list(made.outcomes.values()) == [Outcome(1)]
    assert {name for name, _ in made.speeches[""].routes[VIP]} == peers
