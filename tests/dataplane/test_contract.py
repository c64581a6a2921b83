"""What every data plane does, the kernel's and the fake alike."""

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_network

import pytest

from cloudprovider.core.errors import ConfigurationError, DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, ListenerKey, Plan, diff
from cloudprovider.dataplane.api import STACK, Counter, NetworkConfig, Segment
from cloudprovider.dataplane.fake import FakeDataPlane
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import CONFIG
from tests.dataplane.world import World

VIP = IPv4Address("10.99.0.100")
WEB = ListenerKey(VIP, "TCP", 80)
DNS = ListenerKey(VIP, "UDP", 53)
NODES = Group(frozenset(IPv4Address("10.99.0.11") + i for i in range(3)))
STATIONS = Group(frozenset(MACAddress(f"02:00:00:00:01:0{i}") for i in range(1, 4)))
ONE, TWO = GroupId(1), GroupId(2)
TO_ONE = Forward(group=ONE, backend_port=30080)
PLAN = Plan(groups={ONE: NODES}, forwards={WEB: TO_ONE, DNS: Forward(group=ONE, backend_port=30053)})


async def test_a_new_namespace_forwards_nothing(segment: Segment) -> None:
    assert await segment.engine.observe() == Plan()
    assert await segment.announcer.held() == frozenset()
    assert await segment.engine.intact()
    assert await segment.engine.undisturbed()


@pytest.mark.parametrize(
    "forward",
    [
        TO_ONE,
        Forward(group=GroupId(0), backend_port=30080),
        replace(TO_ONE, by_client=True),
        replace(TO_ONE, backend_port=65535),
        replace(TO_ONE, sources=frozenset({IPv4Network("0.0.0.0/0")})),
        replace(TO_ONE, mode="dsr", group=TWO, backend_port=0),
        replace(TO_ONE, mode="dsr", group=TWO, backend_port=0, by_client=True, former=Former("dsr", TWO)),
        replace(TO_ONE, mode="dsr", group=TWO, backend_port=0, former=Former("nat")),
        replace(
            TO_ONE, mode="dsr", group=TWO, backend_port=0, pinned=True, sources=frozenset({IPv4Network("10.0.0.0/8")})
        ),
        replace(TO_ONE, former=Former("dsr", TWO, by_client=True)),
        replace(TO_ONE, pinned=True),
        replace(TO_ONE, group=GroupId(0), former=Former("dsr", TWO)),
        replace(
            TO_ONE,
            sources=frozenset(map(ip_network, ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/32", "10.0.0.1/32"])),
            by_client=True,
        ),
    ],
)
async def test_what_is_applied_is_observed_and_can_be_taken_back(segment: Segment, forward: Forward) -> None:
    for key in (WEB, DNS):
        await segment.engine.apply(Changes(groups={ONE: NODES, TWO: STATIONS}, forwards={key: forward}))
        assert await segment.engine.observe() == Plan(groups={ONE: NODES, TWO: STATIONS}, forwards={key: forward})
        await segment.engine.apply(Changes(groups={ONE: None, TWO: None}, forwards={key: None}))
        assert await segment.engine.observe() == Plan()
    assert await segment.engine.undisturbed()


@pytest.mark.parametrize("count", [1, 100, 101, 300])
async def test_groups_of_all_sizes_grow_and_shrink(segment: Segment, count: int) -> None:
    many = Group(frozenset(IPv4Address("10.98.0.1") + i for i in range(count)))
    for nodes in (NODES, many, NODES):
        await segment.engine.apply(Changes(groups={ONE: nodes}, forwards={WEB: TO_ONE}))
        assert await segment.engine.observe() == Plan(groups={ONE: nodes}, forwards={WEB: TO_ONE})


@pytest.mark.parametrize("count", [1, 101])
async def test_groups_of_stations_pass_through_every_phase(segment: Segment, count: int) -> None:
    many = frozenset(MACAddress.unpack((0x020000000200 + i).to_bytes(6, "big")) for i in range(count))
    forward = Forward(group=TWO, mode="dsr")
    for nodes in (
        STATIONS,
        Group(many, former=STATIONS.members),
        Group(many, pinned=True),
        Group(many),
        Group(STATIONS.members, former=many | STATIONS.members),
        STATIONS,
    ):
        await segment.engine.apply(Changes(groups={TWO: nodes}, forwards={WEB: forward}))
        assert await segment.engine.observe() == Plan(groups={TWO: nodes}, forwards={WEB: forward})
        counted = await segment.engine.member_counters()
        assert counted == dict.fromkeys(nodes.members | nodes.former, Counter(0, 0))


async def test_ten_thousand_source_ranges(segment: Segment) -> None:
    ranges = frozenset(IPv4Network((0x0A000000 + (i << 8), 24)) for i in range(10_000))
    plan = Plan(
        groups={ONE: NODES, TWO: STATIONS},
        forwards={WEB: replace(TO_ONE, sources=ranges), DNS: Forward(group=TWO, mode="dsr", sources=ranges)},
    )
    await segment.engine.apply(diff(Plan(), plan))
    assert await segment.engine.observe() == plan
    fewer = replace(plan.forwards[DNS], sources=frozenset(list(ranges)[1:]))
    await segment.engine.apply(Changes(forwards={WEB: None, DNS: fewer}))
    assert (await segment.engine.observe()).forwards == {DNS: fewer}


async def test_an_idle_network_has_neither_pins_nor_returned_frames(segment: Segment) -> None:
    moving = Group(STATIONS.members, former=STATIONS.members)
    forward = Forward(group=TWO, mode="dsr")
    await segment.engine.apply(Changes(groups={TWO: moving}, forwards={WEB: forward}))
    assert await segment.engine.pins() == {}
    assert await segment.engine.returned() == {}
    assert await segment.engine.unpin({MACAddress("02:00:00:00:01:01"): [WEB]}) == 0
    assert await segment.engine.unpin({STACK: []}) == 0


async def test_applying_again_changes_nothing(segment: Segment) -> None:
    for _ in range(2):
        await segment.engine.apply(diff(Plan(), PLAN))
        assert await segment.engine.observe() == PLAN


async def test_removing_what_is_not_there_is_no_error(segment: Segment) -> None:
    await segment.engine.apply(Changes(groups={ONE: None}, forwards={WEB: None}))
    assert await segment.engine.observe() == Plan()


async def test_a_forward_to_a_missing_group_is_refused(segment: Segment) -> None:
    with pytest.raises(DataPlaneError, match=r"10\.99\.0\.100 TCP 80 forwards to group 1, which is not there"):
        await segment.engine.apply(Changes(forwards={WEB: TO_ONE}))
    assert await segment.engine.observe() == Plan()


async def test_a_group_in_use_is_not_removed(segment: Segment) -> None:
    await segment.engine.apply(diff(Plan(), PLAN))
    with pytest.raises(DataPlaneError, match="group 1 can't be removed: 2 forwards use it"):
        await segment.engine.apply(Changes(groups={ONE: None}))
    with pytest.raises(DataPlaneError, match="group 1 can't be removed: 1 forwards use it"):
        await segment.engine.apply(Changes(groups={ONE: None}, forwards={WEB: None}))
    assert await segment.engine.observe() == PLAN
    await segment.engine.apply(Changes(groups={ONE: None}, forwards={WEB: None, DNS: None}))
    assert await segment.engine.observe() == Plan()


async def test_forwards_move_to_another_group_in_one_delta(segment: Segment) -> None:
    await segment.engine.apply(diff(Plan(), PLAN))
    moved = {key: replace(forward, group=TWO) for key, forward in PLAN.forwards.items()}
    await segment.engine.apply(Changes(groups={ONE: None, TWO: NODES}, forwards=moved))
    assert await segment.engine.observe() == Plan(groups={TWO: NODES}, forwards=moved)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Changes(groups={GroupId(0): NODES}), "group 0 is out of range"),
        (Changes(groups={GroupId(1 << 24): NODES}), "group 16777216 is out of range"),
        (Changes(groups={TWO: Group(frozenset())}), "group 2 has no nodes"),
        (Changes(groups={TWO: Group(frozenset({IPv6Address("::1")}))}), "node ::1 is a loopback address"),
        (Changes(forwards={ListenerKey(VIP, "TCP", 0): TO_ONE}), "the port is out of range"),
        (Changes(forwards={WEB: replace(TO_ONE, backend_port=0)}), "backend port 0 is out of range"),
        (Changes(forwards={WEB: replace(TO_ONE, backend_port=65536)}), "backend port 65536 is out of range"),
        (Changes(forwards={WEB: replace(TO_ONE, group=GroupId(-1))}), "group -1 is out of range"),
        (Changes(forwards={WEB: replace(TO_ONE, sources=frozenset({ip_network("fd00::/8")}))}), "source range fd00"),
    ],
)
async def test_nonsense_is_refused_whole(segment: Segment, wrong: Changes, said: str) -> None:
    await segment.engine.apply(diff(Plan(), PLAN))
    other = ListenerKey(VIP, "TCP", 443)
    with pytest.raises(DataPlaneError, match=said):
        await segment.engine.apply(
            Changes(
                groups={GroupId(9): NODES, **wrong.groups},
                forwards={other: Forward(group=GroupId(9), backend_port=1), **wrong.forwards},
            )
        )
    assert await segment.engine.observe() == PLAN


async def test_any_plan_follows_any_other(segment: Segment) -> None:
    dice = random.Random(20260101)
    have = Plan()
    for _ in range(60):
        want = _random_plan(dice)
        await segment.engine.apply(diff(have, want))
        have = await segment.engine.observe()
        assert have == want


async def test_the_next_agent_finds_all_as_it_was(world: World) -> None:
    first = await world.dataplane.open(CONFIG)
    await first.engine.start()
    await first.engine.apply(diff(Plan(), PLAN))
    await first.announcer.claim([VIP])
    await first.close()
    second = await world.dataplane.open(CONFIG)
    await second.engine.start()
    assert await second.engine.observe() == PLAN
    assert await second.announcer.held() == {VIP}
    await second.engine.apply(Changes(groups={ONE: None}, forwards={WEB: None, DNS: None}))
    assert await second.engine.observe() == Plan()
    await second.close()


async def test_every_listener_is_counted(segment: Segment) -> None:
    await segment.engine.apply(diff(Plan(), PLAN))
    counters = await segment.engine.counters()
    assert counters.keys() == {WEB, DNS}
    assert all(counter.packets == counter.bytes == 0 for counter in counters.values())


async def test_nothing_is_forgotten_of_an_idle_network(segment: Segment) -> None:
    assert await segment.connections.backends() == {}
    assert await segment.connections.forget_listeners([WEB]) == 0
    assert await segment.connections.forget_listeners([]) == 0
    assert await segment.connections.forget_backends({IPv4Address("10.99.0.11"): {DNS}}) == 0


async def test_networks_come_and_go(world: World) -> None:
    other = replace(CONFIG, name="default/vlan10")
    assert await world.dataplane.networks() == []
    for config in (CONFIG, other):
        segment = await world.dataplane.open(config)
        await segment.engine.start()
    assert sorted(await world.dataplane.networks()) == ["", "default/vlan10"]
    await world.dataplane.remove("")
    await world.dataplane.remove("")
    await world.dataplane.remove("no/such")
    assert await world.dataplane.networks() == ["default/vlan10"]
    again = await world.dataplane.open(CONFIG)
    await again.engine.start()
    assert await again.engine.observe() == Plan()


async def test_networks_do_not_share(world: World, segment: Segment) -> None:
    other = await world.dataplane.open(replace(CONFIG, name="default/vlan10", address=IPv4Interface("10.99.0.5/24")))
    await other.engine.start()
    await segment.engine.apply(diff(Plan(), PLAN))
    assert await other.engine.observe() == Plan()
    await world.dataplane.remove("default/vlan10")
    assert await segment.engine.observe() == PLAN


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, device="nowhere0"), "there is no device nowhere0"),
    ],
)
async def test_a_network_that_cannot_be_is_refused(world: World, config: NetworkConfig, said: str) -> None:
    with pytest.raises(DataPlaneError, match=said):
        await world.dataplane.open(config)
    assert await world.dataplane.networks() == []


async def test_a_network_is_open_once(world: World, segment: Segment) -> None:
    with pytest.raises(DataPlaneError, match="is open already"):
        await world.dataplane.open(CONFIG)


@pytest.mark.parametrize("instance", ["", "a" * 21, "A", "a/b", "-a"])
@pytest.mark.parametrize("kind", [FakeDataPlane, HostDataPlane])
def test_an_instance_must_be_fit_for_a_name(kind: Callable[[str], object], instance: str) -> None:
    with pytest.raises(ConfigurationError, match="can't name network namespaces"):
        kind(instance)


def _random_plan(dice: random.Random) -> Plan:
    groups = {
        GroupId(g): Group(frozenset(IPv4Address("10.98.0.1") + n for n in dice.sample(range(6), dice.randint(1, 6))))
        for g in dice.sample(range(1, 5), dice.randint(0, 4))
    }
    stations = {GroupId(g): _random_stations(dice) for g in dice.sample(range(5, 8), dice.randint(0, 3))}
    sources = [IPv4Network("10.0.0.0/8"), IPv4Network("10.0.0.0/16"), IPv4Network("192.0.2.7/32")]
    forwards = {
        ListenerKey(VIP + dice.randrange(2), dice.choice(["TCP", "UDP"]), dice.randint(80, 83)): Forward(
            group=dice.choice([GroupId(0), *groups]),
            backend_port=dice.randint(30000, 30003),
            by_client=dice.random() < 0.5,
            sources=frozenset(dice.sample(sources, dice.randrange(4))),
        )
        for _ in range(dice.randrange(8))
    }
    hosts = [None, IPv4Address("10.99.0.3"), IPv4Address("10.99.0.4")]
    forwards |= {k: replace(f, predecessor=dice.choice(hosts)) for k, f in forwards.items() if k.protocol == "TCP"}
    for key in dice.sample(sorted(forwards), len(forwards) // 2 if stations else 0):
        former = dice.choice([None, Former("dsr", dice.choice(list(stations)), dice.random() < 0.5)])
        forwards[key] = replace(forwards[key], former=former, pinned=former is None and dice.random() < 0.5)
        if dice.random() < 0.7:
            came = dice.choice([former, Former("nat")]) if former else None
            forwards[key] = replace(
                forwards[key],
                mode="dsr",
                group=dice.choice(list(stations)),
                backend_port=0,
                former=came,
                predecessor=None,
            )
    return Plan(groups={**groups, **stations}, forwards=forwards)


def _random_stations(dice: random.Random) -> Group:
    def some(least: int) -> frozenset[MACAddress]:
        numbers = dice.sample(range(6), dice.randint(least, 6))
        return frozenset(MACAddress(f"02:00:00:00:01:0{n}") for n in numbers)

    return dice.choice([Group(some(1)), Group(some(1), former=some(0)), Group(some(1), pinned=True)])
