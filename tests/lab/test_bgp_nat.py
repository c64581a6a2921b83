"""Mode nat without masquerading, where routers prefer one host and have another one behind it."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.machineroom import Host, hosts
from tests.lab.process import wait_for
from tests.lab.rack import ASN, BEHIND, BFD_MS, Rack, addresses_of, advertisement, bgp_peer, rack, said
from tests.lab.workload import MODE_ANNOTATION, Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(300)]

WEB = Port(80, 8080)
FLOWS = 30
FIRST, SECOND = "host-2", "host-3"


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[Rack, list[Host], str]]:
    """Two hosts that don't masquerade, a router of their own AS, and the address of a Service."""
    work = Workspace(lab.guest_plane.api, "bgp-nat")
    work.create()
    api = lab.host_plane.api
    with hosts(lab, 2, 3, masquerade=False) as others, rack(lab, ASN) as made:
        work.deploy("web", 2)
        work.expose(service("web", [WEB], annotations={MODE_ANNOTATION: "nat"}))
        vip = work.wait_address("web")
        for name in (FIRST, SECOND):
            made.know(name, lab.lan)
            api.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {"says": name}}})
        preferences = {FIRST: 200, SECOND: 100}
        objects = [
            bgp_peer("tor", made.tor_addresses[0], ASN, bfd={"interval": BFD_MS}),
            *(
                advertisement(name, localPref=preference, nodeSelectors=[{"matchLabels": {"says": name}}])
                for name, preference in preferences.items()
            ),
        ]
        with said(api, *objects):
            yield made, others, vip
        work.remove()


def test_connections_outlive_their_host_where_answers_find_the_next_one(
    lab: Lab, pair: tuple[Rack, list[Host], str]
) -> None:
    """It picks them up in mid-stream, and chooses the same nodes. That answers come by it is the matter of the nodes:
    here the routes are changed, as VRRP between gateways would."""
    made, others, vip = pair

    def lead(host: str, wanted: dict[str, int]) -> None:
        own = addresses_of(host, lab.lan)[0]
        wait_for(f"the way by {host}", lambda: made.ways(vip) == {own}, period=0.02)
        told = {path["nexthops"][0]["ip"]: path["locPrf"] for path in made.tor.paths(vip)}
        assert told == {addresses_of(name, lab.lan)[0]: preference for name, preference in wanted.items()}
        for node in lab.nodes.nodes.values():
            node.namespace.ip(f"route replace {BEHIND.ipv4} via {own}")

    wait_for("both to say so", lambda: len(made.tor.paths(vip)) == 2)
    try:
        lead(FIRST, {FIRST: 200, SECOND: 100})
        # A node whose kube-proxy has not yet heard of the NodePort may lose what begins.
        wait_for("both pods to answer", lambda: len({made.client.get(vip, WEB.port).pod for _ in range(20)}) == 2)
        with contextlib.ExitStack() as stack:
            flows = [stack.enter_context(made.client.connect(vip, WEB.port)) for _ in range(FLOWS)]
            before = [flow.get().pod for flow in flows]
            assert len(set(before)) == 2
            others[0].pull_the_plug()
            lead(SECOND, {SECOND: 100})
            assert [flow.get().pod for flow in flows] == before
            assert made.client.get(vip, WEB.port).pod
    finally:
        for node in lab.nodes.nodes.values():
            node.namespace.ip(f"route del {BEHIND.ipv4}")
