"""One network's forwarder on the shipped fake of the kernel."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface, ip_address

import pytest

from cloudprovider.agent import claims
from cloudprovider.agent import forwarder as module
from cloudprovider.agent.forwarder import NetworkForwarder
from cloudprovider.agent.metrics import AgentMetrics
from cloudprovider.core.api.loadbalancer import Listener
from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.metrics.agent import CONFLICTS, REFUSALS, REPAIRS
from cloudprovider.core.metrics.definition import Metric
from cloudprovider.core.plan import Forward, GroupId, IPAddress, ListenerKey, Plan
from cloudprovider.core.wanted import LoadBalancerKey
from cloudprovider.dataplane.api import Claim, NetworkConfig, Segment
from cloudprovider.dataplane.fake import FakeAnnouncer, FakeDataPlane, FakeEngine, FakeFlow, FakeNetwork
from cloudprovider.kube.registry import Registry
from tests.core.test_forwarding import HTTP, backend, cluster, key, lb, vm
from tests.kube.exposed import exposed

CONFIG = NetworkConfig("", "mgmt-br", IPv4Interface("10.0.0.2/24"))
VIP = ip_address("10.0.0.100")
A: LoadBalancerKey = ("t", "a")


async def nothing(_: Segment) -> None:
    await asyncio.Event().wait()


class Alone:
    """No other host."""

    def granted(self, vip: IPAddress) -> bool:
        return False

    def is_fellow(self, vip: IPAddress, mac: str) -> bool:
        return False

    def is_usurped(self, vip: IPAddress) -> bool:
        return False

    def is_orphaned(self, vip: IPAddress) -> bool:
        return False

    def may_have(self, vip: IPAddress, mac: str) -> bool:
        return False


class World:
    """A host, what it should forward, and the forwarder between them."""

    def __init__(self) -> None:
        self.dataplane = FakeDataPlane()
        self.network = self.dataplane.namespaces.setdefault("", FakeNetwork())
        self.table = ForwardingTable([""], time.monotonic)
        self.table.set_cluster(cluster("n1", "n2"))
        self.returned: list[tuple[ListenerKey, MACAddress]] = []
        self.mended: list[LoadBalancerKey] = []
        self.reported: list[LoadBalancerKey] = []
        self.claims: list[tuple[IPAddress, str]] = []
        self.registry = Registry("agent", "0")
        self.forwarder = NetworkForwarder(
            CONFIG,
            lambda: self.dataplane.open(CONFIG),
            self.table,
            self.reported.append,
            adopted=lambda: None,
            defended=lambda vip, mac: self.claims.append((vip, mac)),
            beside=[nothing],
            returned=lambda listener, mac: self.returned.append((listener, mac)),
            mended=self.mended.extend,
            fellows=Alone(),
            metrics=AgentMetrics(self.registry).of(""),
            jitter=lambda: 0.0,
        )

    def put(self, name: str = "a", vip: str = "10.0.0.100", generation: int = 1) -> None:
        self.table.set_load_balancer(lb(name, vip, HTTP))
        self.forwarder.touch(("t", name), generation)

    def delete(self, name: str = "a") -> None:
        gone = self.table.remove_load_balancer(("t", name))
        self.forwarder.touch(("t", name), 1)
        self.forwarder.forget_listeners(("t", name), gone.get("", ()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.forwarder.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the fake has no events to wait for
                await asyncio.sleep(0.001)

    async def counted(self, metric: Metric) -> dict[str, float]:
        """What was counted, by the label "what", if it has one."""
        found = await exposed(self.registry)
        return {dict(labels).get("what", ""): n for (name, labels), n in found.items() if name == metric.name}

    def in_line(self) -> bool:
        plan = self.table.plan("")
        have = self.network.ledger.plan()
        return (have.forwards, have.groups) == (plan.forwards, plan.groups) and self.network.vips == plan.vips


async def test_rules_are_in_place_and_the_address_is_announced() -> None:
    world = World()
    async with world.running():
        world.put()
        await world.until(lambda: A in world.reported and bool(world.forwarder.held([VIP])))
    assert world.in_line()
    assert world.forwarder.generation(A) == 1
    assert world.network.announced == [VIP]


async def test_what_comes_together_goes_into_one_transaction() -> None:
    world = World()
    async with world.running():
        world.put()
        await world.until(world.in_line)
        before = len(world.network.applied)
        for i in range(50):
            world.put(f"b{i}", f"10.0.1.{i}")
        await world.until(world.in_line)
    assert len(world.network.applied) == before + 1


async def test_many_groups_go_in_parts_so_that_nothing_else_waits_for_all_of_them() -> None:
    world = World()
    port = Listener(port=80, backend_port=8080)
    async with world.running():
        world.put()
        await world.until(world.in_line)
        before = len(world.network.applied)
        for i in range(40):  # each with a group of its own, as they are for machines
            world.table.set_load_balancer(vm(f"m{i}", f"10.0.1.{i}", port, backends=[backend("n1"), backend("n2")]))
            world.forwarder.touch(("t", f"m{i}"), 1)
        await world.until(world.in_line)
    parts = world.network.applied[before:]
    assert [len(part.groups) for part in parts] == [16, 16, 8, 0]
    assert sum(len(part.forwards) for part in parts) == 40


async def test_deletion_withdraws_the_address_and_forgets_its_connections() -> None:
    world = World()
    async with world.running():
        world.put()
        await world.until(world.in_line)
        world.network.flows.add(FakeFlow(key("10.0.0.100"), ip_address("10.0.0.11")))
        world.delete()
        await world.until(lambda: not world.network.flows)
    assert world.in_line()
    assert not world.forwarder.on_link([VIP])
    assert world.forwarder.generation(A) == 0


async def test_a_dead_nodes_udp_connections_are_forgotten() -> None:
    world = World()
    async with world.running():
        dns = ListenerKey(VIP, "UDP", 53)
        world.table.set_load_balancer(
            lb("a", "10.0.0.100", HTTP, Listener(name="dns", port=53, protocol="UDP", backend_port=30053))
        )
        world.forwarder.touch(A, 1)
        await world.until(world.in_line)
        world.network.flows |= {FakeFlow(dns, ip_address("10.0.0.11")), FakeFlow(dns, ip_address("10.0.0.12"))}
        world.table.set_cluster(cluster("n2"))
        world.forwarder.wake()
        await world.until(lambda: len(world.network.flows) == 1)
    assert world.in_line()


async def test_a_refusal_is_told_then_mended() -> None:
    world = World()
    async with world.running():
        await world.until(lambda: world.network.static)
        world.network.refusals.append(DataPlaneError("no memory"))
        world.put()
        await world.until(lambda: world.forwarder.problem([VIP]) is not None)
        problem = world.forwarder.problem([VIP])
        assert problem is not None
        assert (problem.reason, problem.message) == ("KernelRefused", "no memory")
        await world.until(world.in_line)
        await world.until(lambda: world.forwarder.generation(A) == 1)
        assert world.forwarder.problem([VIP]) is None
    assert await world.counted(REFUSALS) == {"": 1}


async def test_an_address_of_somebody_else_is_not_announced_but_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "CONFLICT_RETRY", 0.05)
    world = World()
    world.network.neighbours[VIP] = "02:00:00:00:00:99"
    async with world.running():
        world.put()
        await world.until(lambda: world.forwarder.problem([VIP]) is not None)
        problem = world.forwarder.problem([VIP])
        assert problem is not None
        assert problem.reason == "AddressConflict"
        assert "02:00:00:00:00:99" in problem.message
        assert not world.network.vips
        world.network.neighbours.clear()
        await world.until(world.in_line)
    assert world.forwarder.problem([VIP]) is None
    assert (await world.counted(CONFLICTS))[""] >= 1


async def test_an_address_given_up_on_its_way_up_is_told_when_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    probed = asyncio.Event()
    claim = FakeAnnouncer.claim

    async def slow(announcer: FakeAnnouncer, addresses: Sequence[IPAddress], *, hurried: bool) -> list[Claim]:
        await probed.wait()
        return await claim(announcer, addresses, hurried=hurried)

    monkeypatch.setattr(FakeAnnouncer, "claim", slow)
    async with world.running():
        world.put()
        await world.until(lambda: A in world.reported)
        world.delete()
        await world.until(lambda: world.forwarder.generation(A) == 0)
        assert world.forwarder.on_link([VIP])
        world.reported.clear()
        probed.set()
        await world.until(lambda: A in world.reported and not world.forwarder.on_link([VIP]))
        assert not world.network.vips


async def test_a_conflict_is_forgotten_with_the_address() -> None:
    world = World()
    world.network.neighbours[VIP] = "02:00:00:00:00:99"
    async with world.running():
        world.put()
        await world.until(lambda: world.forwarder.foreign([VIP]) == {VIP: "02:00:00:00:00:99"})
        world.delete()
        await world.until(lambda: not world.forwarder.foreign([VIP]))
        assert world.forwarder.problem([VIP]) is None


async def test_what_others_break_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    world = World()
    async with world.running():
        world.put()
        await world.until(world.in_line)
        assert world.mended == []
        world.network.tamper(key("10.0.0.100"), Forward(GroupId(0), 1))
        await world.until(world.in_line)
        assert world.mended == [A]
        world.network.flush()
        world.network.vips.clear()
        await world.until(world.in_line)
        world.network.vips.add(ip_address("10.0.0.77"))
        await world.until(world.in_line)
    counted = await world.counted(REPAIRS)
    assert counted["rules"] == 1
    assert counted["listeners"] >= 2, "of a change, and of all that was flushed"
    assert counted["addresses"] >= 1


async def test_a_network_whose_link_is_gone_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(module, "HELD_EVERY", 1)
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    world = World()
    async with world.running():
        world.put()
        await world.until(lambda: bool(world.forwarder.held([VIP])))
        world.network.announced.clear()
        world.network.link_gone = True
        await world.until(lambda: world.network.announced == [VIP])
        await world.until(lambda: not world.forwarder.trouble)
    assert world.in_line()


async def test_what_the_kernel_can_t_take_keeps_nothing_else_out() -> None:
    """A node whose address is the load balancer's own: that one is told, and the others are served."""
    world = World()
    async with world.running():
        await world.until(lambda: world.network.static)
        world.table.set_cluster(cluster("n1", "n2"))
        world.put("b", "10.0.0.11")
        world.put()
        await world.until(lambda: world.forwarder.problem([ip_address("10.0.0.11")]) is not None)
        await world.until(lambda: key("10.0.0.100") in world.network.ledger.forwards)
        problem = world.forwarder.problem([ip_address("10.0.0.11")])
        assert problem is not None
        assert problem.reason == "KernelRefused"
        assert "has that very address as a node" in problem.message
        assert world.forwarder.problem([VIP]) is None
        world.delete("b")
        await world.until(lambda: world.forwarder.problem([ip_address("10.0.0.11")]) is None)


async def test_a_new_agent_adopts_and_sweeps() -> None:
    world = World()
    async with world.running():
        world.put()
        world.put("b", "10.0.0.101")
        await world.until(world.in_line)
    assert world.network.vips == {VIP, ip_address("10.0.0.101")}  # stopping takes nothing away
    second = World()
    second.dataplane.namespaces[""] = second.network = world.network
    second.table.set_load_balancer(lb("a", "10.0.0.100", HTTP))
    world.network.announced.clear()
    world.network.applied.clear()
    async with second.running():
        await second.until(second.in_line)
    assert world.network.announced == []
    assert len(world.network.applied) == 1  # the one listener that nobody wants any more


async def test_a_network_that_can_not_be_opened_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    world = World()
    world.dataplane.devices.clear()
    world.put()
    async with world.running():
        await world.until(lambda: A in world.reported)
        assert "mgmt-br" in world.forwarder.trouble
        world.dataplane.devices.add("mgmt-br")
        await world.until(world.in_line)
        await world.until(lambda: not world.forwarder.trouble)


@pytest.mark.parametrize("disturbed", [False, True])
async def test_at_the_start_the_kernel_is_read_again_only_if_somebody_else_changed_it(
    monkeypatch: pytest.MonkeyPatch, *, disturbed: bool
) -> None:
    before = World()
    async with before.running():
        before.put()
        await before.until(before.in_line)
    world = World()
    world.dataplane.namespaces[""] = world.network = before.network
    world.put()
    observe, read = FakeEngine.observe, 0

    async def counted(engine: FakeEngine) -> Plan:
        nonlocal read
        read += 1
        found = await observe(engine)
        if disturbed and read == 1:
            world.network.tamper(key("10.0.0.100"), None)
        return found

    monkeypatch.setattr(FakeEngine, "observe", counted)
    async with world.running():
        await world.until(lambda: world.forwarder.generation(A) == 1 and world.in_line())
    assert read == 1 + disturbed
