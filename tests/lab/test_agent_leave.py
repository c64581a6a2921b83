"""``cloudprovider agent leave`` as an operator runs it: under the agent's own account, on kernel and API server."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import checker
from tests.lab.client import Object
from tests.lab.lab import TENANT_NAMESPACE, Lab
from tests.lab.network import Namespace, run
from tests.lab.process import wait_for
from tests.lab.programs import SYSTEM_NAMESPACE, Outcome
from tests.lab.workload import Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel]

WEB = Port(80, 8080)
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases/cloudprovider-agent-lab-host-1"
BALANCERS = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{TENANT_NAMESPACE}/loadbalancers"
OTHERS = ("lb-lab-unmarked", "lb-lab-b-mgmt", "lb-lab-other-net")
MARKS = {
    "lb-lab-b-mgmt": "cloudprovider.harvesterhci.io|lab-b|",  # another instance's, whose name begins as ours
    "lb-lab-other-net": "cloudprovider.harvesterhci.io|lab|another/net",  # ours by its mark, but not by its name
}
BALANCER: Object = {
    "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
    "kind": "LoadBalancer",
    "metadata": {"name": "others", "namespace": TENANT_NAMESPACE},
    "spec": {"workloadType": "vm", "ipPool": "reserved", "listeners": [{"port": 80, "backendPort": 80}]},
}
_numbers = itertools.count(1)


@pytest.fixture
def work(lab: Lab) -> Iterator[Workspace]:
    work = Workspace(lab.guest_plane.api, f"leaving-{next(_numbers)}")
    work.create()
    yield work
    lab.start("agent")
    work.remove()
    checker.wait_until_agreed(lab)


@contextlib.contextmanager
def others_things(lab: Lab) -> Iterator[None]:
    """What a host has of others: namespaces that look like ours, a table of rules, a held load balancer."""
    for name in OTHERS:
        Namespace(name).create()
        if mark := MARKS.get(name):
            run("ip", "-n", name, "link", "set", "lo", "alias", mark)
    host = lab.host_node.namespace
    host.run("nft", "add table inet others; add chain inet others kept; add rule inet others kept counter")
    lab.host_plane.api.create(BALANCERS, BALANCER)
    try:
        yield
    finally:
        lab.host_plane.api.patch(f"{BALANCERS}/others/status", {"status": {"holder": None}})
        lab.host_plane.api.delete(f"{BALANCERS}/others")
        wait_for("others' load balancer gone", lambda: lab.host_plane.api.find(f"{BALANCERS}/others") is None)
        host.run("nft", "delete table inet others")
        for name in OTHERS:
            Namespace(name).remove()


def links(lab: Lab) -> set[str]:
    return {link["ifname"] for link in json.loads(lab.host_node.namespace.run("ip", "-j", "link"))}


def others_rules(lab: Lab) -> str:
    return lab.host_node.namespace.run("nft", "list", "table", "inet", "others")


def held_elsewhere(lab: Lab) -> Object:
    """The status of the load balancer that host-2 holds, but for what the controller says of the hosts there are."""
    status: Object = lab.host_plane.api.get(f"{BALANCERS}/others")["status"]
    status.pop("owner", None)
    return {**status, "conditions": [c for c in status.get("conditions", []) if c["type"] != "Owned"]}


def said(outcome: Outcome) -> Object:
    """The last thing that it said; nothing worse than information was among it."""
    lines: list[Object] = [json.loads(line) for line in outcome.log.splitlines()]
    assert {line["level"] for line in lines} == {"info"}, outcome.log
    return lines[-1]


def test_what_is_its_own_goes_and_what_is_others_stays(lab: Lab, work: Workspace) -> None:
    work.deploy("web", 1)
    work.expose(service("web", [WEB]))
    address = work.wait_address("web")
    checker.wait_until_agreed(lab)
    wait_for("an answer", lambda: lab.client.get(address, WEB.port))
    before = links(lab)
    with others_things(lab):
        lab.programs["agent"].stop()
        holder = {"node": "host-2", "generation": 1, "addresses": ["10.77.64.1"], "mode": "nat"}
        held = {"apiVersion": BALANCER["apiVersion"], "kind": BALANCER["kind"], "status": {"holder": holder}}
        lab.host_plane.api.apply(f"{BALANCERS}/others/status", held, manager="cloudprovider-agent")
        kept, rules = held_elsewhere(lab), others_rules(lab)

        outcome = lab.leave()
        assert outcome.exit_code == 0, outcome.log
        told = said(outcome)
        assert told["message"] == "Nothing of this agent is left on this host."
        assert told["networks_removed"] == ["management"]
        assert (told["node"], told["instance"], told["load_balancers_given_up"]) == ("host-1", "lab", 1)

        assert not Path(f"/run/netns/{lab.segment.name}").exists()
        (gone,) = before - links(lab)
        assert gone.startswith("lb")
        assert before - {gone} == links(lab)
        lab.client.forget_neighbours()
        with pytest.raises(OSError, match=r"timed out|No route to host"):
            lab.client.get(address, WEB.port)
        (balancer,) = (b for b in lab.host_plane.api.items(BALANCERS) if b["spec"].get("service"))
        assert "holder" not in balancer["status"]
        reasons = {condition["type"]: condition["reason"] for condition in balancer["status"]["conditions"]}
        assert reasons == {"Allocated": "Allocated", "Owned": "NoHost"}
        assert lab.host_plane.api.find(LEASE) is None

        def others_are_there() -> None:
            assert all(Path(f"/run/netns/{name}").exists() for name in OTHERS)
            assert others_rules(lab) == rules
            assert held_elsewhere(lab) == kept
            assert work.address("web") == address  # the Service's, which another host may bring up

        others_are_there()
        version = balancer["metadata"]["resourceVersion"]

        again = lab.leave()
        assert again.exit_code == 0, again.log
        told = said(again)
        assert (told["networks_removed"], told["load_balancers_given_up"]) == ([], 0)
        others_are_there()
        assert lab.host_plane.api.find(LEASE) is None
        assert (
            lab.host_plane.api.get(f"{BALANCERS}/{balancer['metadata']['name']}")["metadata"]["resourceVersion"]
            == version
        )
    lab.start("agent")
    checker.wait_until_agreed(lab)
    wait_for("an answer", lambda: lab.client.get(address, WEB.port))
    assert work.address("web") == address


def test_leaving_without_an_api_server_says_so(lab: Lab, work: Workspace) -> None:
    """The kernel is cleared at once; what only the API server can be told waits for a second try."""
    work.deploy("web", 1)
    work.expose(service("web", [WEB]))
    work.wait_address("web")
    with lab.api_server_down("host"):
        outcome = lab.leave()
        assert outcome.exit_code == 1
        assert not Path(f"/run/netns/{lab.segment.name}").exists()
        last = json.loads(outcome.log.splitlines()[-1])
        assert last["level"] == "error"
        assert last["message"] == "The program can't go on"
        assert "Traceback" not in outcome.log
    second = lab.leave()
    assert second.exit_code == 0, second.log
    assert said(second)["load_balancers_given_up"] == 1
