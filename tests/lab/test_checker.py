"""The checker is not blind: whatever is changed in one place alone, it says so, and where.

It is the witness of every scenario. Once everything is gathered from a running lab; then the data is tampered with.
"""

import contextlib
from collections.abc import Iterator
from copy import deepcopy

import pytest

from tests.lab import checker
from tests.lab.client import Object
from tests.lab.lab import TENANT_NAMESPACE, Lab, ProgramName
from tests.lab.process import LabError, wait_for
from tests.lab.snapshot import State, collect
from tests.lab.tampering import DNS, NAMESPACE, STRANGER, TAMPERED, WEB, Tamper, balancer, group
from tests.lab.tampering_dsr import TAMPERED as DIRECT
from tests.lab.tampering_dsr import direct_group
from tests.lab.workload import MODE_ANNOTATION, POOL_ANNOTATION, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel]


@pytest.fixture(scope="module")
def work(lab: Lab) -> Iterator[Workspace]:
    """Services of each kind: plain, policy Local, for some clients and by client, one that gets no address, and two
    in mode dsr."""
    work = Workspace(lab.guest_plane.api, NAMESPACE)
    work.create()
    work.deploy("web", 1)
    nat, dsr = {MODE_ANNOTATION: "nat"}, {MODE_ANNOTATION: "dsr"}
    some: Object = {"sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["10.77.0.0/24"]}
    work.expose(service("web", [WEB, DNS], annotations=nat))
    work.expose(service("local", [WEB], app="web", annotations=nat, externalTrafficPolicy="Local"))
    work.expose(service("sticky", [WEB], app="web", annotations=nat, **some))
    work.expose(service("waits", [WEB], app="web", annotations={POOL_ANNOTATION: "absent"}))
    work.expose(service("direct", [WEB], app="web", annotations=dsr))
    work.expose(service("picky", [WEB], app="web", annotations=dsr, **some))
    for name in ("web", "local", "sticky", "direct", "picky"):
        work.wait_address(name)
    checker.wait_until_agreed(lab)
    yield work
    work.remove()
    checker.wait_until_agreed(lab)


@pytest.fixture(scope="module")
def good(lab: Lab, work: Workspace) -> State:
    """Everything in agreement; not to be changed."""
    found: list[State] = []

    def agreed() -> bool:
        found[:] = [collect(lab)]
        return not checker.compare(found[0])

    wait_for("one look in which all agrees", agreed)
    return found[0]


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        pytest.param(*how, id=name)
        for name, how in {**TAMPERED, **{f"dsr {name}": how for name, how in DIRECT.items()}}.items()
    ],
)
def test_every_difference_is_told(good: State, tamper: Tamper, expected: str) -> None:
    state = deepcopy(good)
    tamper(state)
    told = checker.compare(state)
    assert any(expected in sentence for sentence in told), told
    assert all(sentence.split(": ")[0] in {"guest", "host", "pools", "kernel", "link"} for sentence in told), told


def test_an_endpoint_that_ends_takes_traffic_only_while_there_is_no_other(good: State) -> None:
    """KEP-1669, and what a Service with policy Local is checked by while a pod moves."""
    state = deepcopy(good)
    pieces = [p for p in state.slices if p["metadata"]["labels"]["kubernetes.io/service-name"] == "local"]
    (endpoint,) = (e for piece in pieces for e in piece["endpoints"])
    ending = {"ready": False, "serving": True, "terminating": True}
    endpoint["conditions"] = ending
    assert checker.compare(state) == []
    other = "node-1" if endpoint["nodeName"] == "node-2" else "node-2"
    pieces[0]["endpoints"].append({"nodeName": other, "conditions": {"ready": True}})
    assert any(
        f"names the endpoints' nodes ['{endpoint['nodeName']}'], not ['{other}']" in s for s in checker.compare(state)
    )
    pieces[0]["endpoints"].pop()
    endpoint["conditions"] = ending | {"serving": False}
    assert any("not []" in sentence for sentence in checker.compare(state))


# The same on what runs, so that what the checker gathers is shown to be what is there.


@contextlib.contextmanager
def away(lab: Lab, name: ProgramName) -> Iterator[None]:
    """Without one of the programs, which would mend what is tampered with; back, all agrees again."""
    lab.programs[name].kill()
    try:
        yield
    finally:
        lab.start(name)
        checker.wait_until_agreed(lab)


def test_an_address_taken_off_the_link(lab: Lab, work: Workspace) -> None:
    address = work.address("web")
    with away(lab, "agent"):
        assert checker.differences(lab) == []
        lab.segment.ip(f"address del {address}/32 dev lan0")
        assert checker.differences(lab) == [f"link: answers for [] too, and not for ['{address}']"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("delete element ip cloudprovider listeners {{ {address} . tcp . 80 }}", "'tcp', 80) goes to None"),
        ("delete element ip cloudprovider ports {{ {address} . udp . 53 }}", "'udp', 53) goes to port None"),
        ("add element ip cloudprovider ports {{ 10.77.99.99 . tcp . 1 : 2 }}", "'tcp', 1) goes to port 2, not None"),
        ("delete element ip cloudprovider slots_4099 {{ {group} . 711 }}", "has 4098 slots, not 4099"),
        ("delete element ip cloudprovider tables {{ {group} }}", "leads to None, not to by_flow_4099"),
        ("add element ip cloudprovider sources_0 {{ {address} . tcp . 80 . 0.0.0.0 }}", "open to ['0.0.0.0/0']"),
        ("flush chain ip cloudprovider forward", "kernel: the chain ip forward has no rule"),
        ("flush chain netdev cloudprovider out", "kernel: the chain netdev out has no rule"),
        ("delete element netdev cloudprovider slots_4099 {{ {direct} . 711 }}", "has 4098 slots, not 4099"),
        ("delete element netdev cloudprovider tables4 {{ {direct} }}", "leads to None, not to by_flow4_4099"),
        ("flush set netdev cloudprovider members", "knows frames that come back from [], not"),
    ],
)
def test_an_element_of_the_rules_changed(lab: Lab, work: Workspace, good: State, command: str, expected: str) -> None:
    with away(lab, "agent"):
        assert checker.differences(lab) == []
        names = {"address": work.address("web"), "group": group(good, "web"), "direct": direct_group(good)}
        lab.segment.run("nft", command.format(**names))
        (told,) = checker.differences(lab)
        assert expected in told


def test_a_load_balancers_status_changed(lab: Lab, good: State) -> None:
    changed = balancer(good, "web")
    path = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{TENANT_NAMESPACE}/loadbalancers"
    status = f"{path}/{changed['metadata']['name']}/status"
    with away(lab, "host"):
        lab.host_plane.api.patch(status, {"status": {"address": STRANGER}})
        assert any(f"records ('{STRANGER}', " in sentence for sentence in checker.differences(lab))
        lab.host_plane.api.patch(status, {"status": {"address": changed["status"]["address"]}})


def test_what_does_not_agree_is_told_when_waiting_ends(lab: Lab, work: Workspace) -> None:
    address = work.address("web")
    with away(lab, "agent"):
        lab.segment.ip(f"address del {address}/32 dev lan0")
        with pytest.raises(LabError, match=f"not for .*{address}"):
            checker.wait_until_agreed(lab, timeout=0.1)
