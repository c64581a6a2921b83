"""BGP as an agent speaks it: what it says of the objects and of its kernel, and what it writes into their status."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface, ip_address
from typing import Any

import msgspec
import pytest

from cloudprovider.agent import passwords, routing
from cloudprovider.core.api.bgp import BGPAdvertisement, BGPAnnouncer, BGPPeer, BGPSession
from cloudprovider.core.api.kubernetes import Node, NodeSpec, Secret
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPPool, IPPoolSpec, Range
from cloudprovider.core.errors import KubeError, NotFound
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.fake import FakeDataPlane
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import BGPADVERTISEMENTS, BGPPEERS, IPPOOLS, LOADBALANCERS, NODES, SECRETS
from cloudprovider.liveness.fake import FakePeerWatch
from cloudprovider.routing.fake import FakeRouter
from tests.agent.test_many_hosts import Hosts
from tests.agent.world import VIP, running, until
from tests.core.bgp.objects import advertisement, peer

TOR = ip_address("10.0.0.1")
POOL = "p"


class Routed(Hosts):
    """Hosts, and a router that knows them."""

    def __init__(self, count: int = 2) -> None:
        super().__init__(count)
        own: list[IPAddress] = [IPv4Interface(f"10.0.0.{n + 1}/24").ip for n in range(1, count + 1)]
        self.tor = self.fabric.routers[TOR] = FakeRouter(TOR, 64513, hosts=dict.fromkeys(own, (64512, "")))
        self.cluster.seed(
            IPPOOLS,
            IPPool(metadata=ObjectMeta(name=POOL), spec=IPPoolSpec(ranges=[Range(subnet="10.0.0.0/24")])),
        )
        for n in range(1, count + 1):
            self.cluster.seed(NODES, Node(metadata=ObjectMeta(name=f"h{n}", labels={"rack": str(n)})))

    def said_by(self, vip: IPAddress = VIP, *, graceful: bool = False) -> list[str]:
        """The hosts by which the router reaches an address."""
        found = [host for host, said in self.tor.heard.items() if vip in said and said[vip].graceful is graceful]
        return sorted(f"h{int(host) - int(TOR)}" for host in found)

    async def write(self, peer: BGPPeer | None = None, what: BGPAdvertisement | None = None) -> None:
        if peer is not None:
            await self.client.create(BGPPEERS, peer)
        if what is not None:
            await self.client.create(BGPADVERTISEMENTS, what)

    async def session(self, node: str = "h1", name: str = "tor") -> BGPSession | None:
        obj = await self.client.get(BGPPEERS, "", name)
        return next((s for s in obj.status.sessions if s.node == node), None)

    async def announcer(self, node: str = "h1", name: str = "all") -> BGPAnnouncer | None:
        obj = await self.client.get(BGPADVERTISEMENTS, "", name)
        return next((h for h in obj.status.hosts if h.node == node), None)

    async def error(self, part: str, name: str = "tor", state: str = "Refused") -> bool:
        session = await self.session(name=name)
        return session is not None and session.state == state and part in session.error

    async def cordon(self, node: str, *, cordoned: bool = True) -> None:
        obj = await self.client.get(NODES, "", node)
        await self.client.replace(NODES, msgspec.structs.replace(obj, spec=NodeSpec(unschedulable=cordoned)))


@asynccontextmanager
async def spoken(count: int = 2, **spec: Any) -> AsyncIterator[Routed]:
    """Hosts that say one address to the router."""
    world = Routed(count)
    world.seed()
    await world.write(peer(**spec), advertisement())
    try:
        for n in range(1, count + 1):
            await world.start(f"h{n}")
        await until(lambda: len(world.said_by()) == count)
        yield world
    finally:
        for name in list(world.running):
            await world.stop(name)


async def test_every_host_says_what_its_kernel_forwards_whoever_has_it_on_its_link() -> None:
    async with spoken() as world:
        assert world.said_by() == ["h1", "h2"]
        assert len(world.who()) == 1
        for node in ("h1", "h2"):

            async def told(node: str = node) -> bool:
                session = await world.session(node)
                return session is not None and (session.state, session.advertised) == ("Established", 1)

            await until(told, seconds=10)
            await until(lambda node=node: _addresses(world, node, 1), seconds=10)  # type: ignore[misc]


async def _addresses(world: Routed, node: str, count: int) -> bool:
    found = await world.announcer(node)
    return found is not None and (found.addresses, found.problem) == (count, "")


async def test_a_load_balancer_that_goes_is_not_said_any_more_and_one_that_comes_is() -> None:
    async with spoken() as world:
        world.seed("b", "10.0.0.101")
        await until(lambda: world.said_by(ip_address("10.0.0.101")) == ["h1", "h2"])
        await world.client.delete(LOADBALANCERS, "t", "a")
        await until(lambda: world.said_by() == [])
        assert world.said_by(ip_address("10.0.0.101")) == ["h1", "h2"]


async def test_a_cordoned_host_says_that_it_goes_and_then_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "LEAVE_AFTER", 0.5)
    async with spoken() as world:
        await world.cordon("h1")
        await until(lambda: world.said_by(graceful=True) == ["h1"])
        assert world.said_by() == ["h2"]
        await until(lambda: world.said_by(graceful=True) == [])
        await world.cordon("h1", cordoned=False)
        await until(lambda: world.said_by() == ["h1", "h2"])


async def test_a_host_that_is_cordoned_when_its_agent_starts_says_nothing() -> None:
    async with spoken() as world:
        await world.stop("h1")
        await world.cordon("h1")
        await world.start("h1")
        await until(lambda: _addresses(world, "h1", 1), seconds=10)
        assert world.said_by() == ["h2"]
        assert world.said_by(graceful=True) == []


async def test_hosts_are_chosen_by_their_labels() -> None:
    world = Routed()
    world.seed()
    rack = [{"matchLabels": {"rack": "2"}}]
    await world.write(peer(), advertisement(nodeSelectors=rack))
    await world.start("h1")
    await world.start("h2")
    await until(lambda: world.said_by() == ["h2"])
    assert await world.announcer("h1") is None
    for name in ("h1", "h2"):
        await world.stop(name)


async def test_a_password_is_read_and_where_there_is_none_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "EVERY", 0.05)
    world = Routed(1)
    world.seed()
    world.tor.hosts = dict.fromkeys(world.tor.hosts, (64512, "secret"))
    await world.write(peer(passwordKey="tor"), advertisement())
    await world.start("h1")
    await until(lambda: world.error('there is no key "tor" in Secret cloudprovider-system/cloudprovider-bgp'))
    data = {"tor": base64.b64encode(b"secret\n").decode()}
    metadata = ObjectMeta(name="cloudprovider-bgp", namespace="cloudprovider-system")
    await world.client.create(SECRETS, Secret(metadata=metadata, data=data))
    await until(lambda: world.said_by() == ["h1"])
    await world.stop("h1")


async def test_while_passwords_can_t_be_read_what_is_said_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An API server that fails now must not look as if there were no password."""
    monkeypatch.setattr(routing, "LOOK_AGAIN", 0.05)
    world = Routed(1)
    world.seed()
    world.tor.hosts = dict.fromkeys(world.tor.hosts, (64512, "secret"))
    await world.write(peer(passwordKey="tor"), advertisement())
    metadata = ObjectMeta(name="cloudprovider-bgp", namespace="cloudprovider-system")
    data = {"tor": base64.b64encode(b"secret").decode()}
    await world.client.create(SECRETS, Secret(metadata=metadata, data=data))
    asked: list[Call] = []

    async def failing(call: Call) -> None:
        if call.resource == SECRETS.plural:
            asked.append(call)
            raise KubeError("the server is busy", status=500)

    world.cluster.before = failing
    await world.start("h1")
    await until(lambda: len(asked) >= 3)
    assert await world.session() is None, "nothing is decided"
    told = [r for r in caplog.records if r.getMessage() == "passwords of BGP sessions not read"]
    assert len(told) == 1
    world.cluster.before = None
    await until(lambda: world.said_by() == ["h1"])
    await world.stop("h1")


@pytest.mark.parametrize(
    ("name", "spec", "part"),
    [
        ("tor", {"address": "10.0.0"}, '"10.0.0" is no IP address'),
        ("tor", {"network": "default/vlan9"}, 'does not stand on the network "default/vlan9"'),
        ("twin", {}, "BGPPeer tor is of the same router"),
    ],
)
async def test_what_is_wrong_with_a_peer_stands_in_its_status(name: str, spec: dict[str, Any], part: str) -> None:
    world = Routed(1)
    if name != "tor":
        await world.write(peer())
    await world.write(peer(name, **spec))
    await world.start("h1")
    await until(lambda: world.error(part, name))
    await world.stop("h1")


async def test_what_is_wrong_with_an_advertisement_stands_in_its_status() -> None:
    async with spoken(1) as world:
        await world.write(what=advertisement("wrong", ipPools=["nopool"], peers=["nopeer"]))

        async def told() -> bool:
            found = await world.announcer(name="wrong")
            return found is not None and "no IPPool" in found.problem and "no BGPPeer" in found.problem

        await until(told)


async def test_a_router_of_another_as_is_told_and_the_others_hear_all() -> None:
    async with spoken(1) as world:
        other = ip_address("10.0.0.99")
        world.fabric.routers[other] = FakeRouter(other, 64999, hosts=dict.fromkeys(world.tor.hosts, (64512, "")))
        await world.write(peer("other", str(other), peerASN=65000))
        await until(lambda: world.error("is not of AS 65000: correct spec.peerASN", "other", "Connecting"))
        assert world.said_by() == ["h1"]


async def test_a_router_that_falls_silent_is_left_at_once() -> None:
    async with spoken(1, bfd={"interval": 100}) as world:
        watch = FakePeerWatch(world.heard, [TOR])
        watch.follow({"h1": ip_address("10.0.0.2")})
        task = asyncio.create_task(watch.run())
        await until(lambda: world.watches["h1"].state("router/tor").liveness.value == "up")
        world.heard.cut(watch)
        speaker = world.fabric.speakers[0]
        await until(lambda: speaker.sessions["tor"].drops == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_router_that_drops_the_session_again_and_again_floods_neither_log_nor_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with spoken(1) as world:
        await until(lambda: _addresses(world, "h1", 1), seconds=10)
        speaker = world.fabric.speakers[0]
        writes: list[Call] = []

        async def counted(call: Call) -> None:
            if call.resource == BGPPEERS.plural and call.verb == "apply":
                writes.append(call)

        world.cluster.before = counted
        for _ in range(50):
            speaker.drop("tor", "Cease/Administrative Reset")
            await asyncio.sleep(0.01)
        await until(lambda: world.error("comes up and ends again and again", state="Flapping"))
        told = [r for r in caplog.records if r.getMessage().startswith("BGP session is not up")]
        assert len(told) <= 3, "two drops, and that there are more"
        assert len(writes) <= 10
        writes.clear()
        for number in range(10):  # it is known to flap: another reason each time is not worth a write each time
            speaker.drop("tor", f"Cease/{number}")
            await asyncio.sleep(routing.TOLD_AFTER / 2)
        assert writes == []


async def test_nothing_is_written_that_has_not_changed() -> None:
    async with spoken(1) as world:
        await until(lambda: _addresses(world, "h1", 1), seconds=10)
        before = await world.client.get(BGPPEERS, "", "tor")
        world.seed("b", "10.0.0.101")
        await until(lambda: world.said_by(ip_address("10.0.0.101")) == ["h1"])
        after = await world.client.get(BGPPEERS, "", "tor")
        assert after.metadata.resource_version == before.metadata.resource_version


async def test_an_agent_that_leaves_takes_its_entries_along() -> None:
    async with spoken() as world:
        for node in ("h1", "h2"):
            await until(lambda node=node: _addresses(world, node, 1), seconds=10)  # type: ignore[misc]
        await world.stop("h1")
        network = NetworkConfig("", "mgmt-br", IPv4Interface("10.0.0.2/24"))
        await world.agent("h1", FakeDataPlane(), (network,)).leave()
        assert (await world.session("h1"), await world.announcer("h1")) == (None, None)
        assert await world.session("h2") is not None


async def test_without_the_kinds_an_agent_serves_as_before() -> None:
    world = Routed(1)
    world.seed()

    async def unserved(call: Call) -> None:
        if call.resource in {BGPPEERS.plural, BGPADVERTISEMENTS.plural}:
            raise NotFound("the server could not find the requested resource", status=404)

    world.cluster.before = unserved
    async with running(world.agent("h1", world.planes["h1"])):
        await until(world.holds)


async def test_sessions_are_metrics() -> None:
    world = Routed(1)
    world.seed()
    await world.write(peer(), advertisement())
    await world.write(peer("wrong", "10.0.0"))
    agent = world.agent("h1", world.planes["h1"])
    async with running(agent):
        await until(lambda: world.said_by() == ["h1"])
        await until(lambda: world.error("no IP address", "wrong"))
        text = (await agent.registry.text()).decode()
        where = 'network="management",peer="tor"'
        assert f"cloudprovider_agent_bgp_session_up{{{where}}} 1.0" in text
        assert f"cloudprovider_agent_bgp_advertised_addresses{{{where}}} 1.0" in text
        assert f"cloudprovider_agent_bgp_session_drops_total{{{where}}} 0.0" in text
        assert 'cloudprovider_agent_bgp_session_up{network="management",peer="wrong"} 0.0' in text
