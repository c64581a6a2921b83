"""Several hosts on one network: one of them has an address up, all forward, and it changes hands without a gap."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Interface

import msgspec
import pytest

from cloudprovider.agent.membership import Timing
from cloudprovider.agent.program import Agent
from cloudprovider.core.api.kubernetes import Lease
from cloudprovider.core.api.loadbalancer import Listener
from cloudprovider.core.errors import Unavailable
from cloudprovider.core.hosts import Host, host_of
from cloudprovider.core.metrics.agent import HOST_UP, TAKEOVERS
from cloudprovider.core.owners import successor
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import NetworkConfig, Segment
from cloudprovider.dataplane.fake import FakeDataPlane, FakeLan, FakeNetwork
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import LEASES, LOADBALANCERS
from cloudprovider.liveness.api import Liveness
from cloudprovider.liveness.fake import FakePeerWatch
from tests.agent.world import VIP, World, own, running, until
from tests.kube.exposed import exposed

QUICK = Timing(duration=1, renew=0.2, retry=0.1, lost=0.6, look=0.05, settle=0.3)
PATIENT = dataclasses.replace(QUICK, settle=1.0)
OTHER = Listener(port=81, backend_port=30081)
SHORT = 0.4
"""Seconds in which something would have happened."""


class Hosts(World):
    """Hosts h1, h2, ... on one network, each with a kernel and an agent of its own."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.planes = {f"h{n}": FakeDataPlane(mac=f"02:00:00:00:01:{n:02x}") for n in range(1, count + 1)}
        self.lan = FakeLan(*self.planes.values())
        self.running: dict[str, AsyncExitStack] = {}
        self.agents: dict[str, Agent] = {}
        self.clocks: dict[str, timedelta] = {}
        """How far hosts' clocks are off."""
        self.watches: dict[str, FakePeerWatch] = {}
        self.timing = QUICK
        self.masquerade = True

    async def start(self, name: str) -> Agent:
        address = IPv4Interface(f"10.0.0.{int(name[1:]) + 1}/24")
        network = NetworkConfig("", "mgmt-br", address, masquerade=self.masquerade)
        agent = self.agent(
            name,
            self.planes[name],
            (network,),
            timing=self.timing,
            now=lambda: _utc() + self.clocks.get(name, timedelta()),
            make_watch=lambda _segment, config: self._watch(name, config),
        )
        self.agents[name] = agent
        stack = self.running[name] = AsyncExitStack()
        _ = await stack.enter_async_context(running(agent))
        await until(lambda: not agent.not_ready and self.sees_all(agent))
        return agent

    def _watch(self, name: str, config: NetworkConfig) -> FakePeerWatch:
        self.watches[name] = FakePeerWatch(self.heard, own(config))
        return self.watches[name]

    async def stop(self, name: str) -> None:
        """The agent ends; its kernel goes on."""
        await self.running.pop(name).aclose()

    async def die(self, name: str) -> None:
        """The host ends."""
        self.lan.cut.add(self.planes[name].mac)
        if name in self.running:
            await self.stop(name)
        self.planes[name].namespaces.clear()

    def sees_all(self, agent: Agent) -> bool:
        """Whether an agent knows that all who run are ready."""
        hosts = agent._hosts.roster.hosts
        return all(name in hosts and _ready(hosts[name]) for name in self.running)

    def net(self, name: str) -> FakeNetwork:
        return self.planes[name].namespaces[""]

    def who(self, vip: IPAddress = VIP) -> list[str]:
        """The hosts that have it up."""
        return [name for name, plane in self.planes.items() if "" in plane.namespaces and vip in self.net(name).vips]

    async def own(self, owner: str, name: str = "a") -> None:
        """The controller says whose it is to be."""
        obj = await self.lb(name)
        status = {"addresses": msgspec.to_builtins(obj.status.addresses), "owner": owner, "addressKey": "k"}
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": {"uid": obj.metadata.uid},
            "status": status,
        }
        await self.client.apply(
            LOADBALANCERS, *obj.key, patch, field_manager="cloudprovider-controller", subresource="status"
        )

    async def before(self) -> str:
        """The host by which older connections go on, "" for none."""
        holder = (await self.lb()).status.holder
        return holder.before if holder is not None else ""

    async def served_by(self, owner: str, name: str = "a") -> bool:
        return self.who() == [owner] and await self.holds(name, owner)

    async def stays(self, owner: str) -> None:
        """It is this host's all the time."""
        end = asyncio.get_running_loop().time() + SHORT
        while asyncio.get_running_loop().time() < end:
            assert self.who() == [owner]
            await asyncio.sleep(0.01)


def _utc() -> datetime:
    return datetime.now(UTC)


def _ready(host: Host) -> bool:
    return all(there.ready for there in host.networks.values()) and bool(host.networks)


@asynccontextmanager
async def hosts(count: int = 2, *, start: bool = True, timing: Timing = QUICK) -> AsyncIterator[Hosts]:
    world = Hosts(count)
    world.timing = timing
    try:
        for name in world.planes if start else ():
            await world.start(name)
        yield world
    finally:
        for name in list(world.running):
            await world.stop(name)


async def test_only_the_owner_has_an_address_up_and_all_forward() -> None:
    async with hosts(3) as world:
        world.seed()
        await world.own("h2")
        await until(lambda: world.served_by("h2"))
        for name in world.planes:
            await until(lambda name=name: world.net(name).ledger.plan().forwards)  # type: ignore[misc]
        await world.stays("h2")
        assert [mac for mac, _ in world.lan.announced] == [world.planes["h2"].mac]


async def test_without_a_word_of_the_controller_the_hosts_agree() -> None:
    async with hosts(3) as world:
        obj = world.seed()
        mine = successor(obj.metadata.uid, world.planes)
        await until(lambda: world.served_by(mine))
        await world.stays(mine)


async def test_a_planned_move_takes_the_record_then_the_address_and_asks_nobody() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await until(lambda: world.net("h2").ledger.plan().forwards)
        before = list(world.net("h2").probed)
        await world.own("h2")
        await until(lambda: world.served_by("h2"))
        assert world.net("h2").probed == before
        assert world.net("h1").ledger.plan().forwards, "what still comes to h1 is forwarded"
        await world.stays("h2")
        assert len(world.lan.announced) == 2
        told = await exposed(world.agents["h2"].registry)
        assert told[TAKEOVERS.name, (("other", "living"),)] == 1


def predecessors(world: Hosts, name: str) -> set[str]:
    """Whom a host's kernel asks about connections that it doesn't know."""
    return {str(f.predecessor) for f in world.net(name).ledger.plan().forwards.values() if f.predecessor is not None}


async def moved(world: Hosts, before: str = "h1", after: str = "h2") -> None:
    world.seed()
    await world.own(before)
    await until(lambda: world.served_by(before))
    await until(lambda: world.net(after).ledger.plan().forwards)
    assert not predecessors(world, before)
    await world.own(after)
    await until(lambda: world.served_by(after))


async def test_after_a_move_older_connections_go_on_by_the_host_before() -> None:
    """By its own address on the network, and its kernel knows before the address is announced."""
    async with hosts() as world:
        net = world.net("h2")
        tell, known = net.tell, []

        def told(vip: IPAddress) -> None:
            known.append(predecessors(world, "h2"))
            tell(vip)

        net.tell = told
        await moved(world)
        assert known == [{"10.0.0.2"}]
        assert await world.before() == "h1"
        assert not predecessors(world, "h1")
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await until(lambda: predecessors(world, "h1") == {"10.0.0.3"} and not predecessors(world, "h2"))
        assert await world.before() == "h2"


async def test_what_has_moved_twice_goes_by_both_and_never_round() -> None:
    async with hosts(3) as world:
        await moved(world)
        await world.own("h3")
        await until(lambda: world.served_by("h3"))
        assert (predecessors(world, "h3"), predecessors(world, "h2")) == ({"10.0.0.3"}, {"10.0.0.2"})
        assert not predecessors(world, "h1")
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await until(lambda: not predecessors(world, "h2"))
        assert (predecessors(world, "h1"), predecessors(world, "h3")) == ({"10.0.0.4"}, {"10.0.0.3"})


async def test_a_restart_is_none_to_the_other_hosts() -> None:
    """Its kernel goes on: the Lease says all the time that it is ready, so nobody makes another host the owner."""
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        other = world.agents["h2"]._hosts
        said: list[bool] = []
        other.roster.observe = _noting(other.roster.observe, "h1", said)  # type: ignore[assignment,method-assign]
        await world.stop("h1")
        agent = await world.start("h1")
        await until(
            lambda: not agent.not_ready and agent._controller is not None and agent._controller._forwarders[""].in_line
        )
        assert len(said) > 1
        assert all(said)


def _noting(observe: Callable[[Lease], None], name: str, said: list[bool]) -> Callable[[Lease], None]:
    def noted(lease: Lease) -> None:
        if (host := host_of(lease)) is not None and host.name == name:
            said.append(_ready(host))
        observe(lease)

    return noted


async def test_a_restart_does_not_forget_the_host_before() -> None:
    async with hosts() as world:
        await moved(world)
        await world.stop("h2")
        assert predecessors(world, "h2") == {"10.0.0.2"}
        applied = len(world.net("h2").applied)
        await world.start("h2")
        await until(lambda: world.served_by("h2"))
        assert predecessors(world, "h2") == {"10.0.0.2"}
        assert all(
            forward is not None and str(forward.predecessor) == "10.0.0.2"
            for changes in world.net("h2").applied[applied:]
            for forward in changes.forwards.values()
        )


async def test_the_host_before_dies_and_is_asked_no_more() -> None:
    async with hosts() as world:
        await moved(world)
        await all_hear_each_other(world)
        world.heard.cut(world.watches["h1"])
        await world.die("h1")
        await until(lambda: not predecessors(world, "h2"))

        async def forgotten() -> bool:
            return not await world.before()

        await until(forgotten)
        await world.stays("h2")


async def test_the_agent_of_the_host_before_dies_and_its_kernel_is_still_asked() -> None:
    async with hosts() as world:
        await moved(world)
        await all_hear_each_other(world)
        world.heard.cut(world.watches["h1"])
        await world.stop("h1")
        end = asyncio.get_running_loop().time() + 2 * QUICK.duration
        while asyncio.get_running_loop().time() < end:
            assert predecessors(world, "h2") == {"10.0.0.2"}
            await asyncio.sleep(0.01)
        assert await world.before() == "h1"
        await world.die("h1")
        await until(lambda: not predecessors(world, "h2"))


async def test_who_takes_from_a_dead_host_asks_nobody_about_connections() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.die("h1")
        await until(lambda: world.served_by("h2"))
        assert not predecessors(world, "h2")
        assert await world.before() == ""


@pytest.mark.parametrize("obstacle", ["no copies", "no masquerade"])
async def test_where_it_is_not_possible_or_needed_nobody_is_asked(obstacle: str) -> None:
    """Without masquerading connections go on here, to the same nodes."""
    async with hosts(start=False) as world:
        world.masquerade = obstacle != "no masquerade"
        for name, plane in world.planes.items():
            plane.namespaces[""] = FakeNetwork(handover_obstacle=obstacle * (obstacle == "no copies"))
            await world.start(name)
        await moved(world)
        await world.stays("h2")
        assert not predecessors(world, "h2")


async def test_during_a_move_somebody_always_answers() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        gaps = 0

        async def watch() -> None:
            nonlocal gaps
            while True:
                gaps += not world.who()
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        for owner in ("h2", "h1", "h2"):
            await world.own(owner)
            await until(lambda owner=owner: world.served_by(owner))  # type: ignore[misc]
        watching.cancel()
        assert gaps == 0


async def test_the_owner_dies_and_its_successor_asks_first() -> None:
    async with hosts(3) as world:
        obj = world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.die("h1")
        heir = successor("k", ("h2", "h3"))
        await until(lambda: world.served_by(heir))
        assert VIP in world.net(heir).probed
        assert obj.metadata.uid == (await world.lb()).metadata.uid


async def all_hear_each_other(world: Hosts) -> None:
    def heard() -> bool:
        return all(
            watch.state(other).liveness is Liveness.UP
            for name, watch in world.watches.items()
            for other in world.watches
            if other != name
        )

    await until(heard)


async def test_a_death_that_is_heard_at_once_is_not_waited_for() -> None:
    async with hosts(3, timing=Timing()) as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await all_hear_each_other(world)
        world.heard.cut(world.watches["h1"])
        await world.die("h1")
        heir = successor("k", ("h2", "h3"))
        await until(lambda: world.served_by(heir), 2)
        assert world.net(heir).hurried == [VIP]
        other = ({"h2", "h3"} - {heir}).pop()
        told = await exposed(world.agents[heir].registry)
        assert told[HOST_UP.name, (("host", "h1"), ("network", "management"))] == 0
        assert told[HOST_UP.name, (("host", other), ("network", "management"))] == 1
        assert told[TAKEOVERS.name, (("other", "dead"),)] == 1


async def test_a_death_while_the_api_server_is_away() -> None:
    """The successor is found without it, and written down when it is back."""
    async with hosts(3) as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await all_hear_each_other(world)

        async def away(_: Call) -> None:
            raise Unavailable("away")

        world.cluster.before = away
        world.cluster.cut_watches()
        world.heard.cut(world.watches["h1"])
        await world.die("h1")
        heir = successor("k", ("h2", "h3"))
        await until(lambda: world.who() == [heir])
        await world.stays(heir)
        world.cluster.before = None
        await until(lambda: world.served_by(heir), 20)


async def test_who_hears_another_no_more_says_so_in_its_lease() -> None:
    """So that nobody waits for the Lease of a program that led on the dead host."""
    async with hosts(3, timing=Timing()) as world:
        await all_hear_each_other(world)
        world.heard.cut(world.watches["h1"])
        roster = world.agents["h2"]._hosts.roster
        await until(lambda: roster.is_unheard("h1"), 2)
        assert not roster.is_unheard("h3")
        world.heard.mend(world.watches["h1"])
        await until(lambda: not roster.is_unheard("h1"), 2)


async def test_who_hears_nobody_takes_nothing() -> None:
    async with hosts(3, timing=Timing()) as world:
        world.seed()
        await world.own("h2")
        await until(lambda: world.served_by("h2"))
        await all_hear_each_other(world)
        world.lan.cut.add(world.planes["h1"].mac)
        world.heard.cut(world.watches["h1"])
        await world.stays("h2")
        assert VIP not in world.net("h1").probed
        await until(lambda: _is_unready(world))


async def test_whose_link_is_down_takes_nothing_of_the_only_other_one_and_says_so() -> None:
    """Nobody is there, as far as it hears, and no gateway is known that could tell who of the two it is."""
    async with hosts(2, timing=Timing()) as world:
        world.seed()
        await world.own("h2")
        await until(lambda: world.served_by("h2"))
        await all_hear_each_other(world)
        world.net("h1").link_down = True
        world.lan.cut.add(world.planes["h1"].mac)
        world.heard.cut(world.watches["h1"])
        await world.stays("h2")
        assert VIP not in world.net("h1").probed
        await until(lambda: _is_unready(world))
        world.net("h1").link_down = False
        world.lan.cut.clear()
        world.heard.mend(world.watches["h1"])
        await until(lambda: world.sees_all(world.agents["h2"]))
        assert world.who() == ["h2"]


async def test_who_is_cut_off_from_the_network_reads_that_others_have_its_addresses() -> None:
    async with hosts(3, timing=Timing()) as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await all_hear_each_other(world)
        world.lan.cut.add(world.planes["h1"].mac)
        world.heard.cut(world.watches["h1"])
        heir = successor("k", ("h2", "h3"))
        await until(lambda: world.served_by(heir), 3)
        await world.stays(heir)


async def test_who_answers_for_a_dead_host_s_address_does_not_get_it() -> None:
    async with hosts(2) as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        world.net("h2").neighbours[VIP] = "02:00:00:00:66:66"
        await world.die("h1")
        await until(lambda: world.served_by("h2"))
        await until(lambda: _told(world, "AddressClaimedByOther", "02:00:00:00:66:66"))
        assert (await world.lb()).status.foreign_addresses == []


async def test_a_kernel_that_still_answers_keeps_its_addresses() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.stop("h1")
        await asyncio.sleep(QUICK.duration + SHORT)
        assert world.who() == ["h1"]
        assert (await world.lb()).status.foreign_addresses == []
        world.lan.cut.add(world.planes["h1"].mac)
        await until(lambda: VIP in world.net("h2").vips)
        await until(lambda: world.holds("a", "h2"))


async def test_a_holder_that_has_not_said_its_mac_is_no_stranger() -> None:
    """It is of a release that keeps no Lease, or its agent is just starting: its address is not given up for it."""
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.stop("h1")
        await world.stop("h2")
        await world.client.delete(LEASES, "cloudprovider-system", "cloudprovider-agent-fake-h1")
        await world.own("h2")  # as the controller, which knows of nobody else, says
        probed = world.net("h2").probed.count(VIP)
        await world.start("h2")
        await until(lambda: world.net("h2").probed.count(VIP) > probed)
        await world.stays("h1")
        await world.start("h1")
        await until(lambda: world.served_by("h2"), 5)
        assert (await world.lb()).status.foreign_addresses == []


async def test_from_a_host_that_is_just_back_nothing_is_taken() -> None:
    """While it was silent another one became the owner; the controller is given time to make it the owner again."""
    async with hosts(timing=PATIENT) as world:
        await _silent_and_asked_for(world)
        await world.start("h1")
        await world.stays("h1")
        assert await world.holds("a", "h1")
        await world.own("h1")
        await asyncio.sleep(PATIENT.settle)
        await world.stays("h1")
        assert len(world.lan.announced) == 1


async def test_what_a_host_that_is_back_does_not_keep_is_answered_all_the_time() -> None:
    async with hosts() as world:
        await _silent_and_asked_for(world)
        gaps = 0

        async def watch() -> None:
            nonlocal gaps
            while True:
                gaps += not world.who()
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await world.start("h1")
        await until(lambda: world.served_by("h2"))
        watching.cancel()
        assert gaps == 0


async def _silent_and_asked_for(world: Hosts) -> None:
    """h1 has the address, but no agent any more; h2 is to have it, has asked, and was answered."""
    world.seed()
    await world.own("h1")
    await until(lambda: world.served_by("h1"))
    await world.stop("h1")
    await until(lambda: not world.agents["h2"]._hosts.is_alive("h1"))
    await world.own("h2")
    probed = world.net("h2").probed.count(VIP)
    await until(lambda: world.net("h2").probed.count(VIP) > probed)
    await world.stays("h1")


async def test_who_takes_nobody_for_alive_yields_to_who_writes_the_record() -> None:
    """Such as a host whose fellow is heard by its Lease alone: two do not write themselves into it in turn."""
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.agents["h1"]._hosts, "is_alive", lambda host: host == "h1")
            await world.own("h2")
            await until(lambda: world.served_by("h2"))
            written = (await world.lb()).metadata.resource_version
            await world.stays("h2")
            assert (await world.lb()).metadata.resource_version == written


async def test_a_host_that_starts_takes_nothing_before_its_kernel_is_ready() -> None:
    async with hosts(start=False) as world:
        await world.start("h1")
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.own("h2")
        opened, plane = asyncio.Event(), world.planes["h2"]

        async def slow(config: NetworkConfig) -> Segment:
            await opened.wait()
            return await FakeDataPlane.open(plane, config)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plane, "open", slow)
            starting = asyncio.create_task(world.start("h2"))
            await asyncio.sleep(QUICK.settle)
            await world.stays("h1")
            assert await world.holds("a", "h1")
            opened.set()
            await starting
        await until(lambda: world.served_by("h2"))


async def test_a_fellow_that_has_read_of_its_ownership_sooner_is_not_fought() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        mac = world.planes["h2"].mac
        world.planes["h1"].segments[""].announcer.hear(VIP, mac)
        await asyncio.sleep(0.2)
        await world.own("h2")
        await until(lambda: world.served_by("h2"))
        await asyncio.sleep(1.0)  # so long as it is waited for
        assert not await _told(world, "AddressClaimedByOther", mac)


async def test_who_comes_back_finds_the_record_and_withdraws() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        world.lan.cut.add(world.planes["h1"].mac)  # nobody reaches it, and its agent is gone
        await world.stop("h1")
        await until(lambda: world.holds("a", "h2"))
        assert world.who() == ["h1", "h2"], "its kernel does not know"
        await world.own("h2")
        world.lan.cut.clear()
        await world.start("h1")
        await until(lambda: world.served_by("h2"))
        await world.stays("h2")


async def test_an_agent_that_is_started_again_goes_on() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.stop("h1")
        await world.start("h1")
        await world.stays("h1")
        assert len(world.lan.announced) == 1


async def test_without_the_api_server_nothing_moves() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))

        async def away(call: Call) -> None:
            if call.program == "h1":
                raise Unavailable("away")

        world.cluster.before = away
        world.cluster.cut_watches()
        await asyncio.sleep(QUICK.duration + SHORT)
        await world.stays("h1")
        world.cluster.before = None
        await until(lambda: world.served_by("h1"))


async def test_an_api_server_that_takes_its_time_moves_nothing() -> None:
    """Each request takes as long as two renewals are apart, four times as long as a Lease lasts."""
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        renewals = _renewals(world)
        before = {name: seen.metadata.resource_version for name, seen in (await renewals()).items()}

        async def slow(_: Call) -> None:
            await asyncio.sleep(2 * QUICK.renew)

        world.cluster.before = slow
        asked = list(world.net("h2").probed)
        end = asyncio.get_running_loop().time() + 4 * QUICK.duration
        while asyncio.get_running_loop().time() < end:
            assert world.who() == ["h1"]
            assert all(agent._hosts.is_alive(name) for agent in world.agents.values() for name in world.planes)
            await asyncio.sleep(0.01)
        world.cluster.before = None
        assert world.net("h2").probed == asked, "nobody was even suspected"
        after = await renewals()
        assert all(seen.metadata.resource_version != before[name] for name, seen in after.items())


async def test_a_lease_that_somebody_deletes_is_written_again_and_nothing_moves() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        name = next(name for name in await _renewals(world)() if name.endswith("h1"))
        await world.client.delete(LEASES, SYSTEM, name)

        async def there() -> bool:
            return name in await _renewals(world)()

        await until(there)
        await world.stays("h1")


async def test_clocks_that_are_minutes_apart_make_no_difference() -> None:
    async with hosts(start=False) as world:
        for name, minutes in (("h1", -10), ("h2", 10)):
            world.clocks[name] = timedelta(minutes=minutes)
            await world.start(name)
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await asyncio.sleep(QUICK.duration)
        await world.stays("h1")
        await world.die("h1")
        await until(lambda: world.served_by("h2"))


async def test_a_lease_by_dhcp_goes_on_under_the_same_identity() -> None:
    async with hosts() as world:
        world.seed_dhcp()
        await world.own("h1")
        await until(world.lease)
        first = (await world.lb()).status.lease
        assert first is not None
        await world.copy_lease()
        await world.own("h1")
        await until(lambda: world.holds("a", "h1"))
        await world.own("h2")
        await until(lambda: world.holds("a", "h2"))
        lease = (await world.lb()).status.lease
        assert lease is not None
        assert (lease.ip, lease.hardware_address) == (first.ip, first.hardware_address)


async def test_load_balancers_on_one_address_move_together() -> None:
    async with hosts() as world:
        world.seed("a", "10.0.0.100")
        world.seed("b", "10.0.0.100", OTHER)
        for name in ("a", "b"):
            await world.own("h1", name)
            await until(lambda name=name: world.holds(name, "h1"))  # type: ignore[misc]
        for name in ("a", "b"):
            await world.own("h2", name)
        for name in ("a", "b"):
            await until(lambda name=name: world.served_by("h2", name))  # type: ignore[misc]
        await world.stays("h2")


async def test_what_a_dead_host_held_is_given_back_by_another() -> None:
    async with hosts() as world:
        made = world.seed("a")
        metadata = msgspec.structs.replace(made.metadata, finalizers=["test/keep"])
        world.cluster.seed(LOADBALANCERS, msgspec.structs.replace(made, metadata=metadata))
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.die("h1")
        await world.client.delete(LOADBALANCERS, "t", "a")
        await until(lambda: _has_no_holder(world))


async def test_two_hosts_of_one_name_are_not_one() -> None:
    async with hosts(start=False) as world:
        await world.start("h1")
        twin = world.agent("h1", world.planes["h2"], timing=QUICK, now=_utc)
        async with running(twin):
            await until(lambda: "give this one a name of its own" in "".join(twin.not_ready))
            world.seed()
            await until(lambda: world.served_by("h1"))
            assert not world.planes["h2"].namespaces


async def test_of_two_hosts_with_one_mac_the_second_stands_aside_and_says_so() -> None:
    async with hosts(start=False) as world:
        world.planes["h2"].mac = world.planes["h1"].mac
        await world.start("h1")
        agent = world.agents["h2"] = world.agent("h2", world.planes["h2"], timing=QUICK, now=_utc)
        async with running(agent):
            await until(lambda: any("host h1 has the same MAC" in reason for reason in agent.not_ready))
            roster = world.agents["h1"]._hosts.roster
            await until(lambda: (twin := roster.host("h2")) is not None and bool(twin.networks))
            assert roster.ready([""]) == {"h1"}
        assert not world.agents["h1"].not_ready


async def test_an_agent_that_leaves_is_not_waited_for() -> None:
    async with hosts() as world:
        world.seed()
        await world.own("h1")
        await until(lambda: world.served_by("h1"))
        await world.stop("h1")
        leaving = world.agent("h1", world.planes["h1"], timing=QUICK)
        await leaving.leave()
        began = asyncio.get_running_loop().time()
        await until(lambda: world.served_by("h2"))
        assert asyncio.get_running_loop().time() - began < QUICK.duration
        names = {lease.metadata.name for lease in (await world.client.list(LEASES)).items}
        assert names == {"cloudprovider-agent-fake-h2"}


async def _told(world: Hosts, reason: str, part: str) -> bool:
    return any(reason == told and part in message for told, message in await world.events())


async def _is_unready(world: Hosts) -> bool:
    lease = await world.client.get(LEASES, "cloudprovider-system", "cloudprovider-agent-fake-h1")
    host = host_of(lease)
    return host is not None and not host.networks[""].ready


async def _has_no_holder(world: Hosts) -> bool:
    return (await world.lb()).status.holder is None


def _renewals(world: Hosts) -> Callable[[], Awaitable[dict[str, Lease]]]:
    """Returns the agents' Leases, by their names."""

    async def read() -> dict[str, Lease]:
        return {lease.metadata.name: lease for lease in (await world.client.list(LEASES)).items}

    return read
