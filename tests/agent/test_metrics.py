from ipaddress import ip_address

import pytest

from cloudprovider.agent import metrics
from cloudprovider.agent.metrics import Traffic, exposition_of_traffic
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import ListenerKey
from cloudprovider.dataplane.api import Counter
from tests.agent.world import World, running, until

VIP = ip_address("10.0.0.100")
WEB, TLS = ListenerKey(VIP, "TCP", 80), ListenerKey(VIP, "TCP", 443)
MAC = MACAddress.parse("02:00:00:00:00:11")


def samples(text: str) -> dict[str, int]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: int(value) for name, _, value in lines}


def test_listeners_are_added_up_by_load_balancer_and_nodes_told_by_what_they_are_known_by() -> None:
    traffic = Traffic(
        {WEB: Counter(1, 10, 1), TLS: Counter(2, 20, 5)}, dict.fromkeys((WEB, TLS), "t/a"), {MAC: Counter(3, 30, 4)}
    )
    assert samples(exposition_of_traffic({"": traffic})) == {
        'cloudprovider_agent_client_packets_total{network="",load_balancer="t/a"}': 3,
        'cloudprovider_agent_client_bytes_total{network="",load_balancer="t/a"}': 30,
        'cloudprovider_agent_client_connections_total{network="",load_balancer="t/a"}': 6,
        'cloudprovider_agent_node_packets_total{network="",node="02:00:00:00:00:11"}': 3,
        'cloudprovider_agent_node_bytes_total{network="",node="02:00:00:00:00:11"}': 30,
        'cloudprovider_agent_node_connections_total{network="",node="02:00:00:00:00:11"}': 4,
    }


def test_there_are_never_more_lines_than_allowed_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 2)
    listeners = {ListenerKey(VIP, "TCP", port): Counter(1, port) for port in (1, 2, 3, 4)}
    owners = {listener: f"t/{listener.port}" for listener in listeners if listener.port != 4}
    found = samples(exposition_of_traffic({"": Traffic(listeners, owners, {})}))
    assert {k.partition('load_balancer="')[2][:-2]: v for k, v in found.items() if "bytes" in k} == {
        "t/2": 2,
        "t/3": 3,
        "other": 5,
    }


async def test_an_agent_that_serves_tells_of_its_load_balancers() -> None:
    world = World()
    world.seed()
    agent = world.agent()
    assert "load_balancer=" not in await agent.metrics()
    async with running(agent):
        await until(world.holds)
        assert 'client_bytes_total{network="management",load_balancer="t/a"} 0' in await agent.metrics()
