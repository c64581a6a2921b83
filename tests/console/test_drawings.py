"""Maps of pools, plots of health, counters of agents: numbers for drawings, and what they say in words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_address

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.console.plot import WIDTH, plot
from cloudprovider.console.poolmap import CELLS, PoolMaps, part_of
from cloudprovider.console.traffic import MOST_BYTES, Counters, TrafficReader, parse
from cloudprovider.console.words import age, duration, size
from cloudprovider.core.api.loadbalancer import BackendHealth, HealthChange
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import (
    AddressConflict,
    Allocation,
    IPBlock,
    IPBlockSpec,
    IPPool,
    IPPoolSpec,
    Range,
    Reservation,
)
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import survey
from cloudprovider.core.ranges import Segment
from tests.console.users import now


def maps(subnet: str, taken: list[str], *, reserved: str = "", conflict: str = "", **parts: object) -> PoolMaps:
    reservations = [Reservation(address=reserved, namespace="n", load_balancer="later")] if reserved else []
    spec = IPPoolSpec(ranges=[Range(subnet=subnet, **parts)], reservations=reservations)  # type: ignore[arg-type]
    pool = IPPool(metadata=ObjectMeta(name="p"), spec=spec)
    allocations = {
        a: Allocation(owner="agent/h" if i == 1 else f"n/lb-{i}", uid="" if i == 1 else "u")
        for i, a in enumerate(taken)
    }
    conflicts = {conflict: AddressConflict(hardware_address="52:54:00:00:00:09", until="")} if conflict else {}
    block = IPBlock(spec=IPBlockSpec(pool="p", first="10.0.0.0", allocations=allocations, conflicts=conflicts))
    return PoolMaps(survey([pool])["p"], [block])


def test_a_small_range_is_drawn_address_by_address() -> None:
    found = maps(
        "10.0.0.0/28", ["10.0.0.2", "10.0.0.3"], reserved="10.0.0.4", conflict="10.0.0.5", exclude=["10.0.0.6"]
    )
    (drawn,) = found.overview()
    assert (drawn.step, drawn.first, drawn.last) == (1, "10.0.0.1", "10.0.0.14")
    kinds = [c.kind for c in drawn.cells]
    assert kinds == ["closed", "taken", "host", "kept", "conflict", "closed", *["free"] * 8]
    assert [c.text for c in drawn.cells[:6]] == [
        "10.0.0.1: the gateway",
        "10.0.0.2: (n/lb-0)",
        "10.0.0.3: (the host h)",
        "10.0.0.4: reserved for n/later",
        "10.0.0.5: 52:54:00:00:00:09 has it",
        "10.0.0.6: excluded",
    ]
    assert [r.load_balancer for r in found.records()] == [("n", "lb-0"), None]


def test_a_big_range_is_drawn_in_blocks_that_lead_to_their_parts() -> None:
    taken = [f"10.0.7.{i}" for i in range(256)] + ["10.0.9.1"]
    found = maps("10.0.0.0/16", taken)
    (drawn,) = found.overview()
    assert (drawn.step, len(drawn.cells)) == (256, 256)
    assert [(c.first, c.kind, c.taken) for c in drawn.cells if c.taken] == [
        ("10.0.7.0", "full", 256),
        ("10.0.9.0", "part", 1),
    ]
    assert sum(c.count for c in drawn.cells) == found.size == 65533, "without network, broadcast and gateway"
    part = part_of(f"{drawn.cells[9].first}-{drawn.cells[9].last}")
    assert part is not None
    assert [c.first for c in found.part(part).cells if c.kind == "taken"] == ["10.0.9.1"]
    assert [str(r.holding.address) for r in found.records(part)] == ["10.0.9.1"]


@given(st.integers(0, 128), st.integers(0, 2**63))
def test_every_map_is_one_page_and_each_step_leads_further(prefix: int, at: int) -> None:
    low = 0xFD << 120
    segment = Segment(6, low, low + (1 << (128 - prefix)) - 1) if prefix >= 8 else Segment(6, low, low + 7)
    found = maps("fd00::/8", [])
    steps = 0
    while True:
        drawn = found.part(segment)
        assert 1 <= len(drawn.cells) <= CELLS
        assert ip_address(drawn.cells[0].first) == ip_address(drawn.first)
        assert ip_address(drawn.cells[-1].last) == ip_address(drawn.last)
        if drawn.step == 1:
            break
        cell = drawn.cells[at % len(drawn.cells)]
        inner = part_of(f"{cell.first}-{cell.last}")
        assert inner is not None
        if inner.low == inner.high:
            break
        assert inner.high - inner.low < segment.high - segment.low
        segment = inner
        steps += 1
    assert steps <= 16


@pytest.mark.parametrize("text", ["", "x", "10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "fe80::1%eth0", "-", "10.0.0.0/8"])
def test_a_part_that_is_none_is_none(text: str) -> None:
    assert part_of(text) is None


def health(*changes: tuple[float, bool], healthy: bool, since: float) -> BackendHealth:
    def at(minutes: float) -> str:
        return (now() - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")

    return BackendHealth(
        healthy=healthy, since=at(since), history=[HealthChange(time=at(m), healthy=h) for m, h in changes]
    )


def test_a_history_is_drawn_from_its_first_change_until_now_and_said_in_words() -> None:
    drawn = plot(health((60, True), (30, False), (15, True), healthy=True, since=15), now())
    assert [(s.x, s.width, s.healthy) for s in drawn.spans] == [
        (0, WIDTH / 2, True),
        (WIDTH / 2, WIDTH / 4, False),
        (3 * WIDTH / 4, WIDTH / 4, True),
    ]
    assert drawn.span == "1 h"
    assert drawn.text.startswith(
        "In 1 h 1 time failed. healthy for 30 min, from 2026-05-01 11:00:00 UTC; failed for 15 min"
    )


def test_a_short_failure_is_seen_and_nothing_leaves_the_drawing() -> None:
    drawn = plot(health((10000, True), (0.01, False), healthy=False, since=0.01), now())
    assert drawn.spans[-1].width >= 1
    assert all(s.x >= 0 and s.x + s.width <= WIDTH + 0.01 for s in drawn.spans)
    assert [s.healthy for s in plot(health(healthy=False, since=3), now()).spans] == [False]
    broken = BackendHealth(healthy=True, since="yesterday", history=[HealthChange(time="<b>", healthy=True)])
    assert plot(broken, now()).text == "no history yet"
    future = health((-5, False), healthy=False, since=-5)
    assert plot(future, now()).spans == ()


def test_words() -> None:
    assert [duration(s) for s in (0, 59, 60, 3600, 90000, 86400 * 800)] == ["0 s", "59 s", "1 min", "1 h", "1 d", "2 y"]
    assert [size(n) for n in (0, 999, 1000, 123456, 5 * 10**9)] == ["0 B", "999 B", "1.0 kB", "123 kB", "5.0 GB"]
    assert age("nonsense", now()) == ""


METRICS = """\
# TYPE cloudprovider_agent_client_bytes_total counter
cloudprovider_agent_client_bytes_total{network="management",load_balancer="shops/web"} 1500.0
cloudprovider_agent_client_bytes_total{network="default/vlan8",load_balancer="shops/web"} 500.0
cloudprovider_agent_client_packets_total{network="management",load_balancer="shops/web"} 7.0
cloudprovider_agent_client_bytes_total{network="management",load_balancer="team-a/secret"} 9.0
cloudprovider_agent_node_bytes_total{network="",node="shops/web"} 8.8e+06
"""


def test_counters_are_read_by_load_balancer() -> None:
    assert parse(METRICS) == {"shops/web": Counters(7, 2000), "team-a/secret": Counters(0, 9)}


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def agent(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/metrics", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics?of={{node}}"
    finally:
        await runner.cleanup()


async def test_an_agent_is_asked_once_for_all_who_look_and_the_rate_is_between_looks() -> None:
    asked: list[str] = []
    clock = [100.0]

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.query["of"])
        return web.Response(text=METRICS.replace("1500.0", str(1500.0 + 4000 * len(asked))))

    async with agent(handle) as url:
        reader = TrafficReader(url, lambda: clock[0])
        many = await asyncio.gather(*(reader.of("host-1", "shops/web") for _ in range(20)))
        assert asked == ["host-1"]
        assert {t.counters for t in many} == {Counters(7, 6000)}
        assert many[0].rate is None
        clock[0] += 4
        later = await reader.of("host-1", "shops/web")
        assert (later.counters, later.rate) == (Counters(7, 10000), 1000.0)
        assert (await reader.of("host-1", "shops/none")).counters == Counters(0, 0)


async def test_what_an_agent_must_not_do_to_the_console() -> None:
    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(MOST_BYTES // 65536 + 2):
            await response.write(b"#" * 65536)
        return response

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/")

    async def broken(_: web.Request) -> web.Response:
        return web.Response(body=b"\xff\xfe\x00", status=500)

    for handler, says in ((large, "too large"), (elsewhere, "answers with 302"), (broken, "answers with 500")):
        async with agent(handler) as url:
            found = await TrafficReader(url, lambda: 0.0).of("host-1", "a/b")
            assert found.counters is None
            assert says in found.problem
    found = await TrafficReader("http://127.0.0.1:1/{node}", lambda: 0.0).of("host-1", "a/b")
    assert "can't be asked" in found.problem


@pytest.mark.parametrize("node", ["evil.example/x?", "a b", "host@evil", "HOST", "host:80", "../x", "x" * 300, "[::1]"])
async def test_a_node_that_is_no_hosts_name_is_never_asked(node: str) -> None:
    async def handle(_: web.Request) -> web.Response:
        raise AssertionError

    async with agent(handle) as url:
        assert "no host's name" in (await TrafficReader(url, lambda: 0.0).of(node, "a/b")).problem


def test_addresses_beyond_the_ranges_are_told_too() -> None:
    found = maps("10.0.0.0/28", ["10.0.99.1"])
    address: IPAddress = found.records()[0].holding.address
    assert str(address) == "10.0.99.1"
