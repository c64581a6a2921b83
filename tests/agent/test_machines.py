"""Load balancers for virtual machines through the whole agent, between an API server and a kernel in memory."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import msgspec
import pytest

from cloudprovider.agent import forwarder
from cloudprovider.core.api.guestcluster import GuestCluster, MachineInterface, NodeMachine
from cloudprovider.core.api.loadbalancer import Backend, BackendHealth, Listener
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress, Member
from cloudprovider.dataplane.fake import FakeFlow, FakeNetwork
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from tests.agent.world import OLD, World, running, until
from tests.core.test_forwarding import HTTP, MACS, NODES, backend, cluster, key, lb, vm

WEB = key("10.0.0.100")
PORT = Listener(port=80, backend_port=8080)
SAME = Listener(port=80, backend_port=80)
VM1, VM2 = backend("n1"), backend("n2")
ONE, TWO = (ip_address(NODES[name]) for name in ("n1", "n2"))
FORGED = MACAddress("02:00:00:00:00:66")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder, "PASS_EVERY", 0.01)
    monkeypatch.setattr(forwarder, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(forwarder, "FIRST_LOOK", 0.2)


@pytest.fixture
def world() -> World:
    made = World()
    made.dataplane.namespaces[""] = FakeNetwork()
    return made


async def seed(world: World, *backends: Backend, listener: Listener = PORT, **spec: object) -> None:
    world.cluster.seed(LOADBALANCERS, vm("a", "", listener, **spec))  # type: ignore[arg-type]
    await controller_says(world, *backends)


async def controller_says(world: World, *backends: Backend) -> None:
    """The controller's part of the status, with these machines."""
    obj = await world.lb()
    status = {"addresses": [OLD], "backends": backends}
    patch = {"metadata": {"uid": obj.metadata.uid}, "status": msgspec.to_builtins(status)}
    await world.client.apply(
        LOADBALANCERS, *obj.key, patch, field_manager="cloudprovider-controller", subresource="status"
    )


def members(world: World) -> frozenset[Member]:
    plan = world.network.ledger.plan()
    forward = plan.forwards.get(WEB)
    return frozenset() if forward is None or not forward.group else plan.groups[forward.group].members


def fixed(world: World) -> dict[IPAddress, MACAddress]:
    return dict(world.network.static_neighbours)


async def test_it_is_served_and_what_it_is_sent_to_is_fixed(world: World) -> None:
    await seed(world, VM1, VM2)
    async with running(world.agent()):
        await until(world.holds)
        assert members(world) == {ONE, TWO}
        assert fixed(world) == {ONE: MACS["n1"], TWO: MACS["n2"]}
        assert await world.says("Ready", "Ready")
        assert await world.says_in("Programmed", "Mode nat (the machines would get frames with the address's ports")


async def test_a_machine_is_fixed_before_anything_is_sent_to_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await seed(world, VM1)
    async with running(world.agent()):
        await until(world.holds)
        engine = world.dataplane.segments[""].engine
        apply, at = engine.apply, []

        async def watched(changes: object) -> None:
            at.append(fixed(world))
            await apply(changes)  # type: ignore[arg-type]

        monkeypatch.setattr(engine, "apply", watched)
        await controller_says(world, VM1, VM2)
        await until(lambda: members(world) == {ONE, TWO})
        assert at[0] == {ONE: MACS["n1"], TWO: MACS["n2"]}


async def test_machines_that_come_and_go_are_followed_and_their_datagrams_flushed(world: World) -> None:
    await seed(world, VM1, listener=Listener(port=80, protocol="UDP", backend_port=8080))
    async with running(world.agent()):
        await until(world.holds)
        (listener,) = world.network.ledger.plan().forwards
        world.network.flows = {FakeFlow(listener, ONE), FakeFlow(listener, TWO)}
        await controller_says(world, VM2, Backend(name="n1", reason="NoAddress", message="It reports none."))
        await until(lambda: world.network.flows == {FakeFlow(listener, TWO)})
        await until(lambda: fixed(world) == {TWO: MACS["n2"]})


@pytest.mark.parametrize(
    ("backends", "reason"),
    [
        ((), "NoBackends"),
        ((Backend(name="n1", reason="AgentNotConnected", message="Install it."),), "AgentNotConnected"),
        ((backend("n1", "10.9.0.11"),), "AddressNotOnNetwork"),
    ],
)
async def test_without_a_machine_it_refuses_and_says_why(
    world: World, backends: Sequence[Backend], reason: str
) -> None:
    await seed(world, *backends)
    async with running(world.agent()):
        await until(lambda: world.says("Ready", reason))
        assert await world.holds()
        assert world.network.ledger.plan().forwards[WEB].group == 0
        await controller_says(world, VM1)
        await until(lambda: world.says("Ready", "Ready"))


async def test_a_mode_that_can_not_be_is_told_and_nothing_is_announced(world: World) -> None:
    await seed(world, VM1, listener=SAME, mode="dsr")
    async with running(world.agent()):
        await until(lambda: world.says("Programmed", "ModeNotPossible"))
        assert await world.says_in("Programmed", "n1 does not say that the address is on the loopback")
        assert world.network.vips == set()
        await controller_says(world, backend("n1", direct=True))
        await until(world.holds)
        assert members(world) == {MACS["n1"]}  # nobody was asked


async def test_one_that_goes_leaves_nothing(world: World) -> None:
    await seed(world, VM1, VM2)
    async with running(world.agent()):
        await until(world.holds)
        await world.client.delete(LOADBALANCERS, "t", "a")
        await until(lambda: not world.network.vips and not fixed(world))
        assert world.network.ledger.plan().groups == {}


async def test_a_new_agent_forgets_machines_that_have_gone_meanwhile(world: World) -> None:
    await seed(world, VM1, VM2, drain_seconds=0)
    async with running(world.agent()):
        await until(world.holds)
    assert fixed(world) == {ONE: MACS["n1"], TWO: MACS["n2"]}
    await controller_says(world, VM2)
    async with running(world.agent()):
        await until(lambda: members(world) == {TWO})
        await until(lambda: fixed(world) == {TWO: MACS["n2"]})


async def test_what_somebody_does_to_a_fixed_neighbour_is_put_right(world: World) -> None:
    await seed(world, VM1)
    async with running(world.agent()):
        await until(world.holds)
        world.network.static_neighbours[ONE] = FORGED
        await until(lambda: fixed(world) == {ONE: MACS["n1"]})
        world.network.static_neighbours.clear()
        await until(lambda: fixed(world) == {ONE: MACS["n1"]})


async def test_another_tenant_who_claims_the_address_gets_none_of_it_until_it_is_free(world: World) -> None:
    await seed(world, VM1)
    async with running(world.agent()):
        await until(world.holds)
        liar = backend("n1", mac=FORGED)
        world.cluster.seed(LOADBALANCERS, vm("b", "10.0.0.101", PORT, backends=[liar], namespace="t2"))
        await until(lambda: key("10.0.0.101") in world.network.ledger.plan().forwards)
        assert world.network.ledger.plan().forwards[key("10.0.0.101")].group == 0
        assert fixed(world) == {ONE: MACS["n1"]}
        await world.client.delete(LOADBALANCERS, "t", "a")
        await until(lambda: fixed(world) == {ONE: FORGED})
        await until(lambda: world.network.ledger.plan().forwards[key("10.0.0.101")].group != 0)


async def test_what_only_the_agent_still_says_of_a_machine_is_dropped(world: World) -> None:
    await seed(world, VM1)
    gone = Backend(name="gone", health=BackendHealth(healthy=True, since="2026-01-01T00:00:00Z"))
    patch = {"metadata": {"uid": (await world.lb()).metadata.uid}, "status": {"backends": msgspec.to_builtins([gone])}}
    await world.client.apply(LOADBALANCERS, "t", "a", patch, field_manager="cloudprovider-agent", subresource="status")
    assert {b.name for b in (await world.lb()).status.backends} >= {"gone"}

    async def dropped() -> bool:
        return "gone" not in {b.name for b in (await world.lb()).status.backends}

    async with running(world.agent()):
        await until(dropped)
        await until(world.holds)


def known(*names: str) -> GuestCluster:
    """The tenant with its nodes, and the machines that some of them are."""
    made = cluster("n1", "n2")
    for name in names:
        interface = MachineInterface(mac_address=str(MACS[name]))
        made.status.machines.append(NodeMachine(name=name, virtual_machine=name, interfaces=[interface]))
    return made


async def test_a_guest_s_node_is_believed_by_its_machine_and_not_by_who_answers(world: World) -> None:
    world.network.stations = {ONE: FORGED, TWO: MACS["n2"]}
    world.cluster.seed(LOADBALANCERS, lb("a", "10.0.0.100", HTTP, mode="dsr"))
    async with running(world.agent()):
        await until(lambda: members(world) == {FORGED, MACS["n2"]})  # which is why
        machines = {"machines": msgspec.to_builtins(known("n1").status.machines)}
        await world.client.merge_patch(GUESTCLUSTERS, "t", "c", {"status": machines}, subresource="status")
        await until(lambda: members(world) == {MACS["n1"], MACS["n2"]})
        assert fixed(world) == {ONE: MACS["n1"]}
        world.network.station(ONE, FORGED)
        await asyncio.sleep(0)
        assert members(world) == {MACS["n1"], MACS["n2"]}
