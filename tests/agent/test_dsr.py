"""Mode dsr through the whole agent, between an API server and a kernel in memory."""

from dataclasses import replace
from ipaddress import IPv4Interface, ip_address

import pytest

from cloudprovider.agent import controller, forwarder
from cloudprovider.core import answerers, returns, transitions
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.plan import Former, Group
from cloudprovider.dataplane.api import STACK
from cloudprovider.dataplane.fake import FakeNetwork
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from tests.agent.world import MGMT, VIP, World, running, until
from tests.core.test_forwarding import HTTP, MACS, NODES, cluster, key, lb

WEB = key("10.0.0.100")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder, "PASS_EVERY", 0.01)
    monkeypatch.setattr(forwarder, "PINS_EVERY", 1)
    monkeypatch.setattr(forwarder, "FIRST_LOOK", 0.2)
    monkeypatch.setattr(controller, "REVIEW_EVERY", 0.01)


def world(*answering: str) -> World:
    made = World()
    stations = {ip_address(NODES[name]): MACS[name] for name in answering}
    made.dataplane.namespaces[""] = FakeNetwork(stations=stations)
    return made


def seed(tested: World, **spec: object) -> LoadBalancer:
    return tested.cluster.seed(LOADBALANCERS, lb("a", "10.0.0.100", HTTP, **spec))  # type: ignore[arg-type]


async def test_auto_passes_frames_on_where_all_nodes_stand_on_the_network() -> None:
    tested = world("n1", "n2")
    seed(tested, mode="auto")
    async with running(tested.agent()):
        await until(tested.holds)
    plan = tested.network.ledger.plan()
    assert [g.members for g in plan.groups.values()] == [{MACS["n1"], MACS["n2"]}]
    assert plan.forwards[WEB].mode == "dsr"
    status = (await tested.lb()).status
    assert status.holder is not None
    assert status.holder.mode == "dsr"
    assert {c.type: c.status for c in status.conditions} == {"Programmed": "True", "Ready": "True"}
    assert await tested.says_in("Programmed", "Mode dsr (all nodes stand in 10.0.0.0/24).")


async def test_an_obstacle_on_the_host_makes_it_nat_and_is_told() -> None:
    tested = world("n1", "n2")
    tested.network.dsr_obstacle = "bridge-nf-call-iptables is 1"
    seed(tested, mode="auto")
    async with running(tested.agent()):
        await until(tested.holds)
    assert tested.network.ledger.plan().forwards[WEB].mode == "nat"
    assert await tested.says_in("Programmed", "Mode nat (bridge-nf-call-iptables is 1).")
    assert await tested.says("ClientAddressNotPreserved", "Masquerade")


async def test_a_node_that_claims_the_address_is_named() -> None:
    tested = world("n1", "n2")
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(tested.holds)
        tested.dataplane.segments[""].announcer.hear(VIP, MACS["n2"])
        await until(tested.events)
        ((reason, message),) = await tested.events()
        assert reason == "AddressClaimedByOther"
        assert message.startswith(f"Node n2 ({MACS['n2']}) claims {VIP} too")
        assert "set its strictARP to true" in message


async def test_a_node_that_claims_the_address_makes_it_not_ready_and_auto_nat_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answerers, "FIRST_SECONDS", 2.0)
    tested = world("n1", "n2")
    seed(tested, mode="auto")
    async with running(tested.agent()):
        await until(lambda: tested.says_in("Programmed", "Mode dsr"))
        tested.dataplane.segments[""].announcer.hear(VIP, MACS["n2"])
        await until(lambda: tested.says_in("Programmed", "Mode nat (n2 answers for the cluster's addresses"))
        assert tested.network.ledger.plan().forwards[WEB].mode == "nat"
        assert await tested.says("Ready", "AddressClaimedByNode")
        assert await tested.says_in("Ready", "n2 answered")
        assert await tested.says_in("Ready", "strictARP")
        assert VIP in tested.network.vips
        await until(lambda: tested.says("Ready", "Ready"))
        assert await tested.says_in("Programmed", "Mode dsr (all nodes stand in 10.0.0.0/24)")


async def test_mode_dsr_that_was_asked_for_stays_and_is_told_not_to_be_ready_while_a_node_claims_the_address() -> None:
    tested = world("n1", "n2")
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(tested.holds)
        for name in ("n2", "n1"):
            tested.dataplane.segments[""].announcer.hear(VIP, MACS[name])
        await until(lambda: tested.says_in("Ready", "n1, n2 answered for an address"))
        assert await tested.says_in("Programmed", "(asked for; beware: n1, n2 answer for the cluster's addresses")
        assert tested.network.ledger.plan().forwards[WEB].mode == "dsr"
        assert await tested.held() == [str(VIP)]


async def test_what_is_limited_on_the_host_is_told() -> None:
    tested = world("n1", "n2")
    tested.network.host_obstacle = "The host itself can't reach it."
    seed(tested, mode="auto")
    async with running(tested.agent()):
        await until(lambda: tested.says_in("Programmed", "The host itself can't reach it."))


async def test_where_nodes_answer_through_the_host_nothing_is_hidden() -> None:
    tested = World()
    tested.seed()
    async with running(tested.agent(networks=(replace(MGMT, masquerade=False),))):
        await until(tested.holds)
    assert await tested.condition("ClientAddressNotPreserved") is None


async def test_nothing_is_said_until_the_nodes_had_time_to_answer() -> None:
    tested = world("n1", "n2")
    tested.network.unsettled = {ip_address(NODES["n1"]), ip_address(NODES["n2"])}
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(lambda: bool(tested.network.vips))
        assert (await tested.lb()).status.holder is None
        tested.network.settle(ip_address(NODES["n1"]))
        await until(tested.holds)
        assert await tested.says("Ready", "Ready")


async def test_nodes_that_do_not_answer_are_no_nodes() -> None:
    tested = world()
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(lambda: tested.says("Ready", "NoNodes"))
        assert await tested.says_in("Ready", "a node must answer on the address's own network")
        tested.network.station(ip_address(NODES["n2"]), MACS["n2"])
        await until(lambda: tested.says("Ready", "Ready"))


async def test_a_lost_node_leaves_and_its_connections_end_after_their_time() -> None:
    tested = world("n1", "n2")
    seed(tested, mode="dsr", drain_seconds=0)
    async with running(tested.agent()):
        await until(tested.holds)
        tested.network.pins = {(WEB, MACS["n1"]): 3, (WEB, MACS["n2"]): 2}
        tested.network.station(ip_address(NODES["n1"]), None)

        def left() -> bool:
            groups = list(tested.network.ledger.plan().groups.values())
            return groups == [Group(frozenset({MACS["n2"]}), pinned=True)]  # nothing goes to it any more

        await until(left)
        await until(lambda: tested.network.pins == {(WEB, MACS["n2"]): 2})


async def test_a_change_ends_when_its_time_is_over_and_the_last_pin_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "MOVING_SECONDS", 0.05)
    tested = world("n1", "n2")
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(tested.holds)
        await tested.client.merge_patch(LOADBALANCERS, "t", "a", {"spec": {"mode": "nat"}})

        def forward() -> object:
            return tested.network.ledger.plan().forwards[WEB]

        def moving() -> bool:
            return getattr(forward(), "former", None) is not None

        await until(moving)
        tested.network.pins = {(WEB, MACS["n1"]): 1, (WEB, STACK): 1}
        await until(lambda: bool(getattr(forward(), "pinned", False)))
        assert len(tested.network.ledger.plan().groups) == 1
        tested.network.pins = {}
        await until(lambda: not getattr(forward(), "pinned", True))


async def test_an_agent_that_starts_changes_nothing_until_the_nodes_have_answered() -> None:
    tested = world("n1", "n2")
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(tested.holds)
    before = tested.network.ledger.plan()
    tested.network.applied.clear()
    tested.network.unsettled = {ip_address(NODES["n1"]), ip_address(NODES["n2"])}
    async with running(tested.agent()) as _:
        await until(lambda: bool(tested.network.watchers))
        assert tested.network.ledger.plan() == before
        tested.network.settle(ip_address(NODES["n1"]))
        tested.network.settle(ip_address(NODES["n2"]))
        tested.seed("b", "10.0.0.101")
        await until(lambda: tested.holds("b"))
    assert tested.network.ledger.plan().forwards[WEB] == before.forwards[WEB]
    assert all(WEB not in changes.forwards for changes in tested.network.applied)


async def test_what_changed_while_no_agent_ran_goes_on_as_before() -> None:
    tested = world("n1", "n2")
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(tested.holds)
    (group,) = tested.network.ledger.plan().groups
    await tested.client.merge_patch(LOADBALANCERS, "t", "a", {"spec": {"mode": "nat"}})
    async with running(tested.agent()):
        await until(lambda: tested.network.ledger.plan().forwards[WEB].mode == "nat")
    assert tested.network.ledger.plan().forwards[WEB].former == Former("dsr", group)


async def test_a_node_that_sends_frames_back_is_left_out_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returns, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(returns, "PENALTY_SECONDS", 0.2)
    tested = world("n1", "n2")
    seed(tested, mode="dsr")

    def members() -> list[frozenset[object]]:
        plan = tested.network.ledger.plan()
        return [frozenset(plan.groups[f.group].members) for f in plan.forwards.values()]

    async with running(tested.agent()):
        await until(tested.holds)
        tested.network.returned = {(WEB, MACS["n1"]): 5}
        await until(lambda: members() == [{MACS["n2"]}])
        await until(lambda: tested.says_in("Programmed", "Left out: n1"))
        tested.network.returned = {}
        await until(lambda: members() == [{MACS["n1"], MACS["n2"]}])


async def test_where_all_nodes_send_back_all_are_kept_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returns, "GRACE_SECONDS", 0.0)
    tested = world("n1", "n2")
    seed(tested, mode="dsr")
    async with running(tested.agent()):
        await until(tested.holds)
        tested.network.returned = {(WEB, MACS["n1"]): 5, (WEB, MACS["n2"]): 1}
        await until(lambda: tested.says("Ready", "WaitingForNodes"))
        assert [len(g.members) for g in tested.network.ledger.plan().groups.values()] == [2]


async def test_a_network_without_an_address_of_its_own_serves_dsr_alone() -> None:
    tested = world("n1", "n2")
    bare = replace(MGMT, address=None)
    seed(tested, mode="auto")
    tested.cluster.seed(LOADBALANCERS, lb("b", "10.0.0.101", HTTP))
    async with running(tested.agent(networks=(bare,))):
        await until(tested.holds)
        await until(lambda: tested.says("Programmed", "ModeNotPossible", "b"))
        assert await tested.says_in("Programmed", "needs an IPv4 address of this host", "b")
    assert isinstance(MGMT.address, IPv4Interface)


async def test_a_node_elsewhere_makes_it_nat_and_back() -> None:
    tested = world("n1", "n2")
    seed(tested, mode="auto")
    async with running(tested.agent()):
        await until(tested.holds)
        far = {"status": {"nodes": [{"name": "n1", "addresses": ["10.9.0.1"]}]}}
        await tested.client.merge_patch(GUESTCLUSTERS, "t", "c", far, subresource="status")
        await until(lambda: tested.says_in("Programmed", "Mode nat (10.9.0.1 is not in 10.0.0.0/24"))
        near = {"status": {"nodes": [{"name": n.name, "addresses": n.addresses} for n in cluster("n1").status.nodes]}}
        await tested.client.merge_patch(GUESTCLUSTERS, "t", "c", near, subresource="status")
        await until(lambda: tested.says_in("Programmed", "Mode dsr"))
