"""Three hosts and a top-of-rack router, real kernels and programs: FRR on both sides, ECMP over all hosts at once."""

import base64
import contextlib
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Self

import pytest

from tests.lab.client import Api, ApiError, Object
from tests.lab.lab import TENANT, TENANT_NAMESPACE, Lab, Pool
from tests.lab.machineroom import Host, hosts
from tests.lab.process import LabError, wait_for
from tests.lab.programs import POOLS_PATH, SYSTEM_NAMESPACE, Program
from tests.lab.rack import ASN, BFD_MS, PEERS, TOR_ASN, Rack, addresses_of, advertisement, bgp_peer, rack, said
from tests.lab.traffic import Client, Connection
from tests.lab.workload import MODE_ANNOTATION, POOL_ANNOTATION, Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(300)]

WEB = Port(80, 8080)
SECRETS = f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets"
NODES = "/api/v1/nodes"
COMMUNITY, LARGE, PREFERENCE = "64512:100", "64512:1:2", 150
HOSTS = ["host-1", "host-2", "host-3"]
FLOWS = 60
DIRECT = ("dsr", "routed-dsr")
ROUTED = Pool(
    "routed",
    "10.90.0.10",
    "10.90.0.254",
    guest_cluster=TENANT,
    namespace=TENANT_NAMESPACE,
    network=IPv4Network("10.90.0.0/24"),
)
"""Of no network that anybody stands on: only routers lead there."""
_numbers = itertools.count(1)


@dataclass
class Room:
    """Hosts that all say what they have to the routers, and Services: by name, their addresses."""

    lab: Lab
    others: list[Host]
    rack: Rack
    work: Workspace
    addresses: dict[str, list[str]] = field(default_factory=dict)

    @property
    def api(self) -> Api:
        return self.lab.host_plane.api

    def expose(self, name: str, mode: str, *, pool: str = "lan", policy: str = "SingleStack", app: str = "web") -> None:
        annotations = {MODE_ANNOTATION: mode, POOL_ANNOTATION: pool}
        self.work.expose(service(name, [WEB], app=app, annotations=annotations, ipFamilyPolicy=policy))
        self.work.wait_address(name)
        self.addresses[name] = self.work.addresses(name)

    def hosts(self, *without: str) -> list[str]:
        return [name for name in HOSTS if name not in without]

    def own(self, name: str, *, six: bool = False) -> str:
        """The address of a host's agent."""
        return addresses_of(name, self.lab.lan)[six]

    def wait_ways(self, *names: str, timeout: float = 30) -> float:
        """Wait until the router's kernel sends all addresses to just these hosts; return the seconds."""
        began = time.monotonic()
        for vip in itertools.chain(*self.addresses.values()):
            wanted = {self.own(name, six=":" in vip) for name in names}
            try:
                wait_for(
                    f"ways to {vip} by {', '.join(names)}",
                    lambda v=vip, w=wanted: self.rack.ways(v) == w,  # type: ignore[misc]
                    timeout=timeout,
                    period=0.02,
                )
            except LabError as error:
                sessions = {peer["metadata"]["name"]: peer.get("status", {}) for peer in self.api.items(PEERS)}
                error.add_note(f"there are {self.rack.ways(vip)}, {self.rack.drops()}; {sessions}")
                raise
        return time.monotonic() - began

    def session(self, peer: str, node: str) -> Object:
        """What a host says of its session with a router; {} for nothing."""
        sessions = self.api.get(f"{PEERS}/{peer}").get("status", {}).get("sessions", [])
        return next((s for s in sessions if s["node"] == node), {})

    def wait_session(self, peer: str, node: str, state: str, error: str = "") -> Object:
        def told() -> Object | None:
            found = self.session(peer, node)
            assert found.get("state") == state, found
            assert error in found.get("error", ""), found
            return found

        return wait_for(f"{node}'s session with {peer} to be {state}", told, timeout=40)

    def agent(self, name: str) -> Program:
        agents = {"host-1": self.lab.programs["agent"], **{host.name: host.agent for host in self.others}}
        found = agents[name]
        assert found is not None
        return found

    def passed(self, address: str) -> dict[str, float]:
        """The packets for an address's load balancer, by the host that they came by."""
        name = next(name for name, those in self.addresses.items() if address in those)
        found = {}
        for host in HOSTS:
            counted = self.agent(host).metrics()
            key = re.compile(rf"cloudprovider_agent_client_packets_total{{.*-bgp-{name}-[^-]*}}")
            found[host] = sum(value for metric, value in counted.items() if key.match(metric))
        return found


@dataclass
class Knocking:
    """New connections to addresses, one after the other, while the block lasts. ``waits``: of those that were
    answered, the seconds; ``failed``: the others, and when the last of them ended (monotonic). ``patience``: the
    seconds that each may take."""

    client: Client
    addresses: list[str]
    waits: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    last_failure: float = 0.0
    patience: float = 3.0

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._knock, args=(address,)) for address in self.addresses]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _knock(self, address: str) -> None:
        while not self._ended.wait(0.005):
            began = time.monotonic()
            try:
                self.client.get(address, WEB.port, timeout=self.patience)
            except OSError as error:
                self.last_failure = time.monotonic()
                self.failed.append(f"{address} after {time.monotonic() - began:.2f} s: {error}")
            else:
                self.waits.append(time.monotonic() - began)


@pytest.fixture(scope="module")
def room(lab: Lab) -> Iterator[Room]:
    work = Workspace(lab.guest_plane.api, "bgp")
    work.create()
    api = lab.host_plane.api
    with hosts(lab, 2, 3) as others, rack(lab) as made:
        found = Room(lab, others, made, work)
        for name in HOSTS:
            made.know(name, lab.lan)
        work.deploy("web", 2)
        api.create(POOLS_PATH, ROUTED.manifest())
        found.expose("nat", "nat")
        found.expose("dsr", "dsr", policy="RequireDualStack")
        found.expose("routed-nat", "nat", pool="routed")
        found.expose("routed-dsr", "dsr", pool="routed")
        objects = [
            *(
                bgp_peer(name, address, TOR_ASN, bfd={"interval": BFD_MS, "multiplier": 3})
                for name, address in zip(("tor", "tor6"), made.tor_addresses, strict=True)
            ),
            bgp_peer("reflector", made.reflector_address, ASN),
            advertisement(
                "both",
                communities=[COMMUNITY, f"large:{LARGE}"],
                localPref=PREFERENCE,
                ipPools=["lan", "routed"],
            ),
        ]
        with said(api, *objects):
            found.wait_ways(*HOSTS)
            yield found
        with contextlib.suppress(ApiError):
            api.delete(f"{SECRETS}/cloudprovider-bgp")
        work.remove()
        api.delete(f"{POOLS_PATH}/routed")


def _flows(room: Room, stack: contextlib.ExitStack, address: str) -> list[Connection]:
    client = room.rack.client
    return [stack.enter_context(client.connect(address, WEB.port, timeout=5)) for _ in range(FLOWS)]


@pytest.mark.parametrize("name", ["nat", "dsr", "routed-nat", "routed-dsr"])
def test_the_router_spreads_connections_over_all_hosts(room: Room, name: str) -> None:
    """IPv4 and IPv6: whichever host the router takes, the connection is answered."""
    for address in room.addresses[name]:
        before = Counter(room.passed(address))
        for _ in range(FLOWS):
            assert room.rack.client.get(address, WEB.port).pod
        by = {host: count - before[host] for host, count in room.passed(address).items()}
        assert all(count > 0 for count in by.values()), (by, room.rack.drops())


def test_what_is_said_of_an_address_is_heard(room: Room) -> None:
    (vip,) = room.addresses["nat"]
    paths = room.rack.tor.paths(vip)
    assert len(paths) == len(HOSTS)
    for path in paths:
        assert (path["community"]["string"], path["largeCommunity"]["string"]) == (COMMUNITY, LARGE)
        assert path["aspath"]["string"] == str(ASN)
    assert {path["locPrf"] for path in room.rack.reflector.paths(vip)} == {PREFERENCE}
    everything = list(itertools.chain(*room.addresses.values()))
    for peer, count in (("tor", sum("." in a for a in everything)), ("tor6", sum(":" in a for a in everything))):
        for node in HOSTS:
            told = room.wait_session(peer, node, "Established")
            wait_for(
                "how many are said",
                lambda p=peer, n=node, c=count: room.session(p, n).get("advertised") == c,  # type: ignore[misc]
            )
            assert told.get("error", "") == ""


def test_what_a_host_refuses_every_host_refuses(room: Room) -> None:
    """Without pods nobody is kept waiting, whichever host the router takes."""
    room.expose("empty", "nat", pool="routed", app="nobody")
    (vip,) = room.addresses["empty"]
    try:
        room.wait_ways(*HOSTS)
        for _ in range(FLOWS):
            with pytest.raises(ConnectionRefusedError):
                room.rack.client.get(vip, WEB.port)
    finally:
        del room.addresses["empty"]
        room.work.delete("empty")
        room.work.wait_deleted("empty")


def test_an_address_that_is_deleted_is_withdrawn(room: Room) -> None:
    room.expose("short", "nat")
    (vip,) = room.addresses["short"]
    room.wait_ways(*HOSTS)
    del room.addresses["short"]
    began = time.monotonic()
    room.work.delete("short")
    wait_for("the router to have no way there", lambda: room.rack.ways(vip) == set() and not room.rack.tor.paths(vip))
    print(f"withdrawn {time.monotonic() - began:.2f} s after the deletion")
    room.work.wait_deleted("short")
    room.wait_ways(*HOSTS)


def test_a_cordoned_host_is_left_without_a_failure(room: Room) -> None:
    leaving = "host-2"
    own = room.own(leaving)
    everything = list(itertools.chain(*room.addresses.values()))
    (vip,) = room.addresses["nat"]
    seen: set[str] = set()
    with contextlib.ExitStack() as stack, Knocking(room.rack.client, everything) as knocking:
        flows = [flow for name in DIRECT for address in room.addresses[name] for flow in _flows(room, stack, address)]
        room.api.patch(f"{NODES}/{leaving}", {"spec": {"unschedulable": True}})

        def told() -> bool:
            for path in room.rack.tor.paths(vip):
                if path["nexthops"][0]["ip"] == own:
                    seen.update(path["community"]["list"])
            return "gracefulShutdown" in seen

        try:
            wait_for("the router to be told that it goes", told, period=0.02)
            assert own in {path["nexthops"][0]["ip"] for path in room.rack.tor.paths(vip)}
            room.wait_ways(*room.hosts(leaving))
            wait_for("it to say nothing", lambda: len(room.rack.tor.paths(vip)) == len(HOSTS) - 1)
            assert all(flow.get().pod for flow in flows)
        finally:
            room.api.patch(f"{NODES}/{leaving}", {"spec": {"unschedulable": None}})
        room.wait_ways(*HOSTS)
        assert all(flow.get().pod for flow in flows)
    print(f"{len(knocking.waits)} connections, the longest waited {max(knocking.waits):.2f} s")
    assert knocking.failed == []
    assert room.session("tor", leaving)["state"] == "Established"


def test_an_agent_that_is_killed_keeps_its_sessions(room: Room) -> None:
    """Outside of a container bgpd outlives it, and the next one goes on with it."""
    agent = room.agent("host-3")
    own = room.own("host-3")

    before = room.rack.drops()[own]
    everything = list(itertools.chain(*room.addresses.values()))
    with Knocking(room.rack.client, everything) as knocking:
        agent.kill()
        agent.start()
        room.wait_ways(*HOSTS)
    assert knocking.failed == []
    assert room.rack.drops()[own] == before


def test_a_wrong_password_is_told_and_the_right_one_ends_it(room: Room) -> None:
    router, peer = room.rack.reflector, f"{PEERS}/reflector"
    data = {"rack": base64.b64encode(b"not-this-one").decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cloudprovider-bgp"}, "data": data}
    try:
        room.api.patch(peer, {"spec": {"passwordKey": "rack"}})
        room.wait_session("reflector", "host-2", "Refused", 'no key "rack" in Secret')
        room.api.create(SECRETS, secret)
        for name in HOSTS:
            router.know(room.own(name), ASN, "it-is-it")
        for name in HOSTS:
            room.wait_session("reflector", name, "Connecting", "with the same password")
        right = {"rack": base64.b64encode(b"it-is-it").decode()}
        room.api.patch(f"{SECRETS}/cloudprovider-bgp", {"data": right})
        for name in HOSTS:
            room.wait_session("reflector", name, "Established")
            assert "it-is-it" not in room.agent(name).process.log_text()
    finally:
        for name in HOSTS:
            router.know(room.own(name), ASN)
        room.api.patch(peer, {"spec": {"passwordKey": None}})
    for name in HOSTS:
        room.wait_session("reflector", name, "Established")


def test_a_router_that_drops_its_sessions_again_and_again_floods_nothing(room: Room) -> None:
    """Every two seconds, of all hosts: its status says so once, and what goes by the other router goes on."""
    everything = list(itertools.chain(*room.addresses.values()))
    lines = {name: len(room.agent(name).process.log_text().splitlines()) for name in HOSTS}
    versions: set[str] = set()
    with Knocking(room.rack.client, everything) as knocking:
        end = time.monotonic() + 24
        again = 0.0
        while time.monotonic() < end:
            if time.monotonic() > again:
                room.rack.reflector.say("clear bgp *")
                again = time.monotonic() + 2
            versions.add(room.api.get(f"{PEERS}/reflector")["metadata"]["resourceVersion"])
            time.sleep(0.05)
        for name in HOSTS:
            room.wait_session("reflector", name, "Flapping", "comes up and ends again and again")
    assert knocking.failed == []
    more = {name: len(room.agent(name).process.log_text().splitlines()) - lines[name] for name in HOSTS}
    print(f"{len(versions)} versions of the status, lines of log: {more}")
    assert len(versions) <= len(HOSTS) * 8
    assert all(count <= 12 for count in more.values())


def test_a_router_that_nobody_is_to_speak_to_any_more_is_left(room: Room) -> None:
    peer = f"{PEERS}/reflector"
    before = room.api.get(peer)["spec"]
    room.api.delete(peer)
    wait_for("it to hear nothing", lambda: room.rack.reflector.prefixes() == set())
    assert room.rack.tor.prefixes() != set()
    room.api.create(PEERS, {**bgp_peer("reflector", "", ASN), "spec": before})
    for name in HOSTS:
        room.wait_session("reflector", name, "Established")


def test_a_host_dies_under_load(room: Room) -> None:
    """Connections in mode dsr go on, whichever host they went by; so do those that begin, within a second."""
    victim = room.others[1]
    everything = list(itertools.chain(*room.addresses.values()))
    with contextlib.ExitStack() as stack:
        direct = [flow for name in DIRECT for address in room.addresses[name] for flow in _flows(room, stack, address)]
        translated = [flow for address in room.addresses["nat"] for flow in _flows(room, stack, address)]
        assert all(flow.get().pod for flow in (*direct, *translated))
        with Knocking(room.rack.client, everything) as knocking:
            wait_for("some connections", lambda: len(knocking.waits) > FLOWS)
            began = time.monotonic()
            victim.pull_the_plug()
            with Knocking(room.rack.client, everything, patience=0.1) as hasty:
                room.wait_ways(*room.hosts(victim.name))
                print(f"the router has left it after {time.monotonic() - began:.2f} s")
                wait_for("load after that", lambda: time.monotonic() > began + 2)
            assert hasty.last_failure < began + 1, f"failed yet after {hasty.last_failure - began:.2f} s"
            print(f"the last new connection that failed ended {hasty.last_failure - began:.2f} s after the death")
            assert all(flow.get().pod for flow in direct)
            kept = sum(_goes_on(flow) for flow in translated)
            print(f"{kept} of {len(translated)} translated connections went on")
        print(f"{len(knocking.waits)} connections, the longest waited {max(knocking.waits):.2f} s")
        assert knocking.failed == []
        victim.boot()
        room.wait_ways(*HOSTS, timeout=60)
        assert all(flow.get().pod for flow in direct), "also when a path comes"


def _goes_on(flow: Connection) -> bool:
    try:
        return bool(flow.get().pod)
    except OSError:
        return False
