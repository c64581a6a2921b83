"""One agent after another: an older one's tables are taken over as they stand, and a killed one's are mended."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from cloudprovider.core.maglev import lookup_table, table_size
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, ListenerKey, Plan, diff
from cloudprovider.dataplane import ruleset_dsr
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.dsr import ADDRESSES, ONE, TO_ONE, VIP, WEB, Connection, connections, group, nft, serving, started
from tests.dataplane.lan import CONFIG, LIMIT, Station

pytestmark = pytest.mark.kernel

FIRST_VERSION = Path(__file__).with_name("first_version.nft")
TO_NAT = Forward(group=ADDRESSES, backend_port=30080)
STICKY = ListenerKey(VIP, "TCP", 81)

KILLED = """
import asyncio, itertools, sys
from ipaddress import IPv4Address
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, ListenerKey
from cloudprovider.dataplane import ruleset_dsr
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import CONFIG

async def main():
    segment = await HostDataPlane("test").open(CONFIG)
    await segment.engine.start()
    nodes = [IPv4Address("10.98.0.1") + i for i in range(5)]
    for turn in itertools.count():
        groups = {GroupId(7): Group(frozenset(nodes[: 1 + turn % 5]))}
        key = ListenerKey(IPv4Address("10.99.0.200") + turn % 50, "TCP", 80)
        await segment.engine.apply(Changes(groups=groups, forwards={key: Forward(GroupId(7), 1 + turn % 1000)}))
        print(turn, flush=True)

asyncio.run(main())
"""


def load_first_version(tmp_path: Path, nodes: list[Station]) -> Plan:
    """Have the namespace as an agent of the first version left it, forwarding two ports in mode nat."""
    members = sorted((node.address for node in nodes), key=lambda address: address.packed)
    table = lookup_table(members, 10_007)  # whatever size it would have today
    add = "add element ip cloudprovider"
    lines = [
        f"{add} listeners {{ {VIP} . tcp . 80 : {ADDRESSES} }}",
        f"{add} listeners {{ {VIP} . tcp . 81 : {0xC0000000 | ADDRESSES} }}",
        f"{add} sources_24 {{ {VIP} . tcp . 81 . 10.99.0.0 }}",
        *(f"{add} ports {{ {VIP} . tcp . {port} : 30080 }}" for port in (80, 81)),
        f"{add} tables {{ {ADDRESSES} : goto by_flow_10007 }}",
        f"{add} tables {{ {0x80000000 | ADDRESSES} : goto by_client_10007 }}",
        f"{add} slots_10007 {{ "
        + ", ".join(f"{ADDRESSES} . {slot} : {members[index]}" for slot, index in enumerate(table))
        + " }",
    ]
    script = tmp_path / "rules.nft"
    script.write_text("flush ruleset\n" + FIRST_VERSION.read_text() + "\n".join(lines) + "\n")
    nft(f"-f {script}")
    sticky = Forward(ADDRESSES, 30080, by_client=True, sources=frozenset({CONFIG_NETWORK}))
    return Plan(groups={ADDRESSES: Group(frozenset(members))}, forwards={WEB: TO_NAT, STICKY: sticky})


CONFIG_NETWORK = CONFIG.address.network if CONFIG.address is not None else pytest.fail("no network")


async def test_an_older_agent_s_tables_are_taken_over_without_a_gap(
    dataplane: HostDataPlane, client: Station, nodes: list[Station], tmp_path: Path
) -> None:
    segment = await dataplane.open(CONFIG)
    await segment.announcer.claim([VIP])
    plan = load_first_version(tmp_path, nodes)
    async with serving(nodes):
        flows = [await Connection.open(client) for _ in range(10)]
        assert await client.ask_tcp(VIP, 81)
        ended = False

        async def knock() -> int:
            count = 0
            while not ended:
                assert await client.ask_tcp(VIP, 80)
                count += 1
            return count

        knocking = [asyncio.create_task(knock()) for _ in range(3)]
        await segment.engine.start()
        assert await segment.engine.intact()
        have = await segment.engine.observe()
        # Their elements stand. What is new beside them, counters, lacks: so groups and listeners show as broken.
        assert have.forwards.keys() == plan.forwards.keys()
        await segment.engine.apply(diff(have, plan))
        assert await segment.engine.observe() == plan
        dsr = Changes(groups={ONE: group(nodes)}, forwards={ListenerKey(VIP, "TCP", 82): TO_ONE})
        await segment.engine.apply(dsr)
        ended = True
        assert sum(await asyncio.gather(*knocking)) > 0
        assert all([await flow.alive() for flow in flows])
        assert len({await client.ask_tcp(VIP, 81) for _ in range(10)}) == 1
        for flow in flows:
            flow.close()


async def test_an_agent_that_knew_no_ways_is_taken_over_without_a_gap(
    dataplane: HostDataPlane, client: Station, nodes: list[Station]
) -> None:
    segment = await started(dataplane)
    plan = Plan(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE})
    await segment.engine.apply(diff(Plan(), plan))
    await segment.close()
    table = "netdev cloudprovider"
    rules = ["meta mark set 0", "meta protocol ip goto v4", "meta protocol ip6 goto v6"]
    nft(f"flush chain {table} ingress; delete map {table} ways")
    for rule in rules:
        nft(f"add rule {table} ingress {rule}")
    async with serving(nodes):
        flow = await Connection.open(client)
        segment = await dataplane.open(CONFIG)
        await segment.engine.start()
        assert await flow.alive()  # before anything is applied
        assert await client.ask_tcp(VIP, 80)
        assert await segment.engine.observe() == plan
        await segment.engine.apply(Changes())
        assert "0x86dd" not in nft(f"list map {table} ways"), "nothing is wanted of IPv6"
        assert await flow.alive()
        flow.close()


async def test_a_newer_agent_s_chains_serve_until_the_elements_lead_to_ours(
    dataplane: HostDataPlane, client: Station, nodes: list[Station]
) -> None:
    """An upgrade that is taken back: what leads to a chain that is not known here can't be removed at once."""
    segment = await started(dataplane)
    plan = Plan(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE})
    await segment.engine.apply(diff(Plan(), plan))
    await segment.close()
    ours = ruleset_dsr.chain("by", 4, table_size(len(nodes)), by_client=False)
    table = "netdev cloudprovider"
    nft(f"add chain {table} newer")
    nft(f"add rule {table} newer goto {ours}")
    nft(f"add chain {table} unused")
    nft(f"delete element {table} tables4 {{ {ONE} }}")
    nft(f"add element {table} tables4 {{ {ONE} : goto newer }}")
    async with serving(nodes), connections(client, 8) as flows:
        segment = await dataplane.open(CONFIG)
        await segment.engine.start()
        assert all([await flow.alive() for flow in flows])
        assert await client.ask_tcp(VIP, 80)
        chains = nft("list chains netdev")
        assert "newer" in chains
        assert "unused" not in chains
        await segment.engine.apply(diff(await segment.engine.observe(), plan))
        assert await segment.engine.observe() == plan
        await segment.engine.start()
        assert "newer" not in nft("list chains netdev")
        assert all([await flow.alive() for flow in flows])
        await segment.close()


async def test_a_killed_agent_s_work_is_taken_over(
    dataplane: HostDataPlane, client: Station, nodes: list[Station]
) -> None:
    segment: KernelSegment = await started(dataplane)
    addresses = Group(frozenset(node.address for node in nodes))
    plan = Plan(groups={ADDRESSES: addresses}, forwards={WEB: TO_NAT})
    await segment.engine.apply(diff(Plan(), plan))
    await segment.close()
    async with serving(nodes):
        flow = await Connection.open(client)
        for turns in (1, 20, 50):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", KILLED, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
            )
            assert process.stdout is not None
            async with asyncio.timeout(4 * LIMIT):
                for _ in range(turns):
                    assert await process.stdout.readline()
                process.send_signal(signal.SIGKILL)
                await process.wait()
                await process.stdout.read()
            segment = await dataplane.open(CONFIG)
            await segment.engine.start()
            have = await segment.engine.observe()
            assert have.groups.keys() == {ADDRESSES, GroupId(7)}  # whole transactions only
            assert all(have.groups[number].members for number in have.groups)
            assert all(forward.backend_port for forward in have.forwards.values())
            await segment.engine.apply(diff(have, plan))
            assert await segment.engine.observe() == plan
            assert await flow.alive()
            await segment.close()
        flow.close()
