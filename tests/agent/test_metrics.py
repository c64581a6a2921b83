"""What an agent tells of itself: what it counts, what it reads from the kernel, and never too much of it."""

from collections.abc import Mapping
from ipaddress import ip_address

from cloudprovider.agent.metrics import AgentMetrics
from cloudprovider.agent.readings import Traffic, read_traffic
from cloudprovider.core.api.loadbalancer import HealthCheck, Listener
from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.metrics import agent as metrics
from cloudprovider.core.plan import ListenerKey
from cloudprovider.core.questions import GrpcHealth, HttpGet, Question, TcpConnect, Tls
from cloudprovider.dataplane.api import Counter
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import LOADBALANCERS
from cloudprovider.probe.api import Target
from cloudprovider.probe.fake import FakeProber, FakeTargets
from tests.agent.test_forwarder import World as Forwarding
from tests.agent.world import World, running, until
from tests.core.test_forwarding import lb
from tests.kube.exposed import exposed

VIP = ip_address("10.0.0.100")
WEB, TLS = ListenerKey(VIP, "TCP", 80), ListenerKey(VIP, "TCP", 443)
MAC = MACAddress.parse("02:00:00:00:00:11")


def told(traffic: Mapping[str, Traffic], most: int = 10) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(m.name, values): n for m, series in read_traffic(traffic, most) for values, n in series.items()}


def test_listeners_are_added_up_by_load_balancer_and_nodes_told_by_what_they_are_known_by() -> None:
    traffic = Traffic(
        {WEB: Counter(1, 10, 1), TLS: Counter(2, 20, 5)}, dict.fromkeys((WEB, TLS), "t/a"), {MAC: Counter(3, 30, 4)}
    )
    assert told({"vlan": traffic}) == {
        (metrics.CLIENT_PACKETS.name, ("vlan", "t/a")): 3,
        (metrics.CLIENT_BYTES.name, ("vlan", "t/a")): 30,
        (metrics.CLIENT_CONNECTIONS.name, ("vlan", "t/a")): 6,
        (metrics.NODE_PACKETS.name, ("vlan", str(MAC))): 3,
        (metrics.NODE_BYTES.name, ("vlan", str(MAC))): 30,
        (metrics.NODE_CONNECTIONS.name, ("vlan", str(MAC))): 4,
    }


def test_there_are_never_more_series_than_allowed_and_nothing_is_lost() -> None:
    listeners = {ListenerKey(VIP, "TCP", port): Counter(1, port) for port in (1, 2, 3, 4)}
    owners = {listener: f"t/{listener.port}" for listener in listeners if listener.port != 4}
    found = told({"vlan": Traffic(listeners, owners, {})}, most=2)
    assert {values[1]: n for (name, values), n in found.items() if name == metrics.CLIENT_BYTES.name} == {
        "t/2": 2,
        "t/3": 3,
        "other": 5,
    }


async def test_an_agent_that_serves_tells_of_its_load_balancers() -> None:
    world = World()
    world.seed()
    agent = world.agent()
    before = await exposed(agent.registry)
    assert before[metrics.SERVING.name, ()] == 0
    assert not [name for name, _ in before if name == metrics.CLIENT_BYTES.name]
    async with running(agent):
        await until(world.holds)
        found = await exposed(agent.registry)
    network = ("network", "management")
    assert found[metrics.SERVING.name, ()] == 1
    assert found[metrics.NETWORK_UP.name, (network,)] == 1
    assert found[metrics.CLIENT_BYTES.name, (("load_balancer", "t/a"), network)] == 0
    assert found[metrics.LISTENERS.name, (network,)] == 1
    assert found[metrics.ADDRESSES.name, (network, ("state", "held"))] == 1
    assert found["cloudprovider_queue_depth", (("queue", "status"),)] == 0
    assert (
        found[f"{metrics.APPLY_SECONDS.name}_count", (network,)]
        + found[f"{metrics.READ_BACK_SECONDS.name}_count", (network,)]
    )


async def test_leases_are_told_by_state_and_the_first_that_ends() -> None:
    world = World()
    agent = world.agent()
    async with running(agent):
        await world.serve_by_dhcp()
        found = await exposed(agent.registry)
        network = ("network", "management")
        leases = {key[1][1]: n for (name, key), n in found.items() if name == metrics.DHCP_LEASES.name}
        assert leases == {"held": 1, "troubled": 0, "seeking": 0}
        assert found[metrics.DHCP_EXPIRY.name, (network,)] > world.now.timestamp()
        assert found[metrics.DHCP_MESSAGES.name, (("direction", "sent"), network, ("type", "discover"))] == 1


async def test_probes_and_their_backends_are_counted() -> None:
    world = World()
    check = HealthCheck(port=30080, period_seconds=1, timeout_seconds=1, failure_threshold=1, success_threshold=1)
    world.seed("a", "10.0.0.100", Listener(port=80, backend_port=30080))
    made = lb("b", "10.0.0.101", Listener(port=80, backend_port=30080), health_check=check)
    world.cluster.seed(LOADBALANCERS, made)
    agent = world.agent()
    async with running(agent):

        async def counted() -> bool:
            found = await exposed(agent.registry)
            probes = {dict(key)["kind"] for name, key in found if name == metrics.PROBES.name}
            backends = [n for (name, _), n in found.items() if name == metrics.BACKENDS.name]
            return probes == {"node", "tcp"} and sum(backends) == 2

        await until(counted)


async def test_each_kind_of_probe_has_its_name_and_result() -> None:
    registry = Registry("agent", "0")
    targets = FakeTargets()
    prober = AgentMetrics(registry).counted(FakeProber(targets), "", of_nodes=False)
    kinds: dict[str, Question] = {
        "tcp": TcpConnect(),
        "http": HttpGet(),
        "https": HttpGet(tls=Tls()),
        "grpc": GrpcHealth(),
        "grpcs": GrpcHealth(tls=Tls()),
    }
    answers: list[Answer] = []
    for kind in kinds.values():
        await prober.begin(Target(VIP, 80, kind), 1.0, answers.append)
    await until(lambda: len(answers) == len(kinds))
    result = "passed" if answers[0].outcome is Outcome.GOOD else "failed"
    found = await exposed(registry)
    for kind_name in kinds:
        key = (("kind", kind_name), ("network", "management"), ("result", result))
        assert found[metrics.PROBES.name, key] == 1


async def test_what_others_do_to_the_kernel_is_counted() -> None:
    world = Forwarding()
    world.put()
    async with world.running():
        await until(lambda: world.network.announced)
        found = await exposed(world.registry)
    network = ("network", "management")
    assert found[f"{metrics.READ_BACK_SECONDS.name}_count", (network,)] >= 1
    assert found[metrics.REFUSALS.name, (network,)] == 0
