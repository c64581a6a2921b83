"""Scenarios of load balancers for virtual machines: found by label, known by their MACs, followed at once."""

import contextlib
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from e2e.machines import Owner, owners, wait_fixed
from e2e.scenario import WEB, Scenario
from tests.lab.client import ApiError, Object
from tests.lab.lab import AGENT_NUMBER, GATEWAY, HOST_NUMBER, NETWORK, TENANT, TENANT_NAMESPACE
from tests.lab.machine import GUEST_CLUSTER_LABEL, Machine, announce, instance, instances
from tests.lab.process import wait_for
from tests.lab.workload import Port

pytestmark = [
    *(pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)),
    pytest.mark.lab("virtual machines on a host's bridge"),
]

MORE, DNS, SAME = Port(9090, 9090), Port(53, 5353, "UDP"), Port(80, 80)


@pytest.fixture
def both(scenario: Scenario) -> Iterator[tuple[Owner, Owner]]:
    with owners(scenario) as made:
        yield made


@pytest.fixture
def ours(both: tuple[Owner, Owner]) -> Owner:
    return both[0]


@pytest.fixture
def rivals(both: tuple[Owner, Owner]) -> Owner:
    return both[1]


def test_machines_by_label_behind_one_address(ours: Owner) -> None:
    one, two = ours.machine("one"), ours.machine("two")
    ours.machine("other", labels={"app": "other"})
    ours.balance("web", [WEB, MORE, DNS], ipPool="machines")
    ours.balance("again", [WEB], ipPool="machines")
    ours.balance("nobody", [WEB, DNS], {"app": ["web"], "tier": ["none"]}, ipPool="machines")
    (address,), (again,), (nobody,) = (ours.addresses(name) for name in ("web", "again", "nobody"))
    ours.wait_served(address, [WEB, MORE, DNS], {"one", "two"})
    ours.wait_served(again, [WEB], {"one", "two"})  # two load balancers on the same port of the same machines
    wait_fixed(ours.scenario, {m.addresses[0]: m.mac for m in (one, two)})
    assert sorted(ours.status("web")["backendServers"]) == sorted([one.addresses[0], two.addresses[0]])
    assert {b["name"]: b["macAddress"] for b in ours.status("web")["backends"]} == {"one": one.mac, "two": two.mac}
    ours.world.wait_until_agreed()
    ours.wait_said("web", "Ready", "Ready")
    assert "tier=none" in ours.wait_said("nobody", "Ready", "NoBackends")
    for port in (WEB, DNS):
        ours.scenario.wait_refused(nobody, port)
    ours.delete("again")
    ours.wait_served(address, [WEB], {"one", "two"})
    ours.delete("web")
    ours.scenario.wait_silent(address, WEB)


def test_machines_that_come_go_and_change_are_followed_within_a_second(ours: Owner) -> None:
    one = ours.machine("one")
    ours.balance("web", [WEB, DNS], ipPool="machines")
    (address,) = ours.addresses("web")
    ours.scenario.wait_answer(address, WEB)
    two = ours.world.add_machine(ours.namespace, "two")
    try:
        ours.follows(lambda: two.tell({"app": "web"}), address, WEB, {"one", "two"})
        ours.wait_served(address, [WEB, DNS], {"one", "two"})
        with ours.world.client.connect(address, WEB.port) as kept:
            name = kept.get().pod
            left, stays = (one, two) if name == "one" else (two, one)
            ours.follows(lambda: left.label(app="other"), address, WEB, {stays.name})
            ours.wait_served(address, [WEB, DNS], {stays.name})
            assert kept.get().pod == name  # established connections drain
            ours.follows(lambda: left.label(app="web"), address, WEB, {"one", "two"})
            assert kept.get().pod == name
        ours.follows(lambda: left.report(left.addresses[1]), address, WEB, {stays.name})  # it has none of this family
        ours.follows(lambda: left.report(*left.addresses), address, WEB, {"one", "two"})
        ours.follows(two.delete, address, WEB, {"one"})
        ours.wait_served(address, [WEB, DNS], {"one"})
        ours.follows(one.delete, address, WEB, set())
        ours.scenario.wait_refused(address, WEB)
        ours.scenario.wait_refused(address, DNS)
    finally:
        with contextlib.suppress(ApiError):
            two.delete()


def test_a_machine_that_migrates_keeps_all(ours: Owner) -> None:
    ours.machine("one")
    ours.balance("web", [WEB, DNS], ipPool="machines")
    (address,) = ours.addresses("web")
    ours.wait_served(address, [WEB, DNS], {"one"})
    before, since = ours.world.fixed_neighbours(), ours.status("web")
    with ours.world.client.connect(address, WEB.port) as kept:
        kept.get()
        ours.world.migrate_machine("one")
        assert kept.get().pod == "one"
    ours.wait_served(address, [WEB, DNS], {"one"})
    assert ours.world.fixed_neighbours() == before
    assert ours.status("web") == since


def test_a_machine_that_lies_about_its_address_gets_nothing_and_takes_nothing(ours: Owner, rivals: Owner) -> None:
    """Whoever had it first keeps it; and nobody's traffic goes to the host itself, a gateway, or off the network."""
    victim, neighbour = ours.machine("victim"), ours.machine("neighbour", labels={"app": "other"})
    ours.balance("web", [WEB], ipPool="machines")
    (address,) = ours.addresses("web")
    ours.wait_served(address, [WEB], {"victim"})
    before = victim.accepted(), neighbour.accepted()
    liar = rivals.machine("liar", victim.addresses)
    rivals.balance("web", [WEB, DNS])
    (lied,) = rivals.addresses("web")
    assert rivals.backend("web", "liar")["reason"] == "AddressInUse"
    rivals.scenario.wait_refused(lied, WEB)
    rivals.scenario.wait_refused(lied, DNS)
    agent, gateway, host = (str(NETWORK[number]) for number in (AGENT_NUMBER, GATEWAY, HOST_NUMBER))
    lies = {
        neighbour.addresses[0]: "AddressInUse",
        address: "LoadBalancerAddress",
        lied: "NoAddress",  # it may well carry that one, and is to have another
        gateway: "GatewayAddress",
        host: "HostAddress",
        **dict.fromkeys((agent, "8.8.8.8", "10.77.255.255"), ""),  # what the host lets pass, and the agent does not
    }
    for said, reason in lies.items():
        liar.report(said)
        wait_for(f"the lie {said} to be read", partial(_told, rivals, said, reason))
        rivals.wait_said("web", "Ready", reason or "AddressNotOnNetwork")
        rivals.scenario.wait_refused(lied, WEB)
        fixed = ours.world.fixed_neighbours()
        assert fixed[victim.addresses[0]] == victim.mac, said
        assert set(fixed) <= {*victim.addresses}, said
    assert (victim.accepted(), neighbour.accepted()) == before
    ours.wait_served(address, [WEB], {"victim"})


def _told(owner: Owner, said: str, reason: str) -> bool:
    """Whether the status answers to what the machine says now."""
    entry = owner.backend("web", "liar")
    assert (entry.get("addresses", []), entry.get("reason", "")) == ([] if reason else [said], reason)
    return True


def test_machines_that_can_not_be_reached_are_told_with_the_reason(ours: Owner) -> None:
    away = ours.machine("away", network="default/elsewhere")
    two_nics = instance("two-nics", {"app": "web"}, "02:00:00:00:02:01", ["10.9.0.1"], network="default/one")
    more = instance("two-nics", {}, "02:00:00:00:02:02", ["10.9.0.2"], network="default/two")
    for mine, other in zip(nics(two_nics), nics(more), strict=True):
        mine.append({**other[0], "name": "nic-2"})
    ours.api.create(instances(ours.namespace), two_nics)
    ours.machine("mute", agent=False)
    ours.balance("web", [WEB], ipPool="machines")
    (address,) = ours.addresses("web")
    try:
        reasons = {name: ours.backend("web", name)["reason"] for name in ("away", "two-nics", "mute")}
        assert reasons == {"away": "NotOnNetwork", "two-nics": "NotOnNetwork", "mute": "AgentNotConnected"}
        message = ours.wait_said("web", "Ready", "NotOnNetwork")
        assert "default/one" in message
        assert "qemu-guest-agent" in ours.backend("web", "mute")["message"]
        ours.scenario.wait_refused(address, WEB)
        wait_fixed(ours.scenario, {})
        ours.machine("good")
        ours.wait_served(address, [WEB], {"good"})
        assert away.accepted() == 0
    finally:
        ours.api.delete(f"{instances(ours.namespace)}/two-nics")


def nics(vmi: Object) -> tuple[list[Object], ...]:
    """Where an instance tells of its interfaces."""
    return vmi["spec"]["networks"], vmi["spec"]["domain"]["devices"]["interfaces"], vmi["status"]["interfaces"]


def test_where_machines_carry_the_address_frames_go_on_unchanged_else_not(ours: Owner) -> None:
    one = ours.machine("one", direct=True)
    client = ours.world.client
    ours.balance("web", [SAME], ipPool="machines")
    (address,) = ours.addresses("web")
    one.carry(address)
    ours.scenario.wait_mode(address, SAME, "dsr")
    ours.wait_served(address, [SAME], {"one"})
    assert ours.scenario.ask(address, SAME).client == client.own_address(address)
    ours.world.wait_until_agreed()
    ours.machine("two")
    ours.scenario.wait_mode(address, SAME, "nat")
    ours.wait_served(address, [SAME], {"one", "two"})
    assert ours.scenario.ask(address, SAME).client == str(NETWORK[AGENT_NUMBER])
    assert "two does not say" in ours.wait_said("web", "Programmed", "Programmed")
    ours.balance("must", [Port(80, 8080)], ipPool="machines", mode="dsr")
    assert "TCP 80 to 8080" in ours.wait_said("must", "Programmed", "ModeNotPossible")


def test_both_families(ours: Owner) -> None:
    one, two = ours.machine("one"), ours.machine("two")
    ours.balance("web", [WEB, DNS], ipPool="machines", ipFamilyPolicy="RequireDualStack")
    four, six = ours.addresses("web", 2)
    assert ":" in six
    for address in (four, six):
        ours.wait_served(address, [WEB, DNS], {"one", "two"})
    ours.world.wait_until_agreed()
    wait_fixed(ours.scenario, {a: m.mac for m in (one, two) for a in m.addresses})
    two.delete()
    ours.wait_served(six, [WEB], {"one"})
    one.delete()
    ours.scenario.wait_refused(six, WEB)
    ours.scenario.wait_refused(six, DNS)


@pytest.mark.parametrize("mode", ["dsr", "nat"])
def test_who_spoofs_a_guest_s_node_gets_nothing_where_its_machine_is_known(scenario: Scenario, mode: str) -> None:
    host, node = scenario.world.api("host"), "node-1"
    scenario.guest.deploy("web", 1, node=node)
    address = scenario.exposed("web", mode=mode, pods=1, externalTrafficPolicy="Local")
    mac = scenario.world.on_node(node).namespace.mac("eth0")
    where = scenario.world.on_node(node).own_address(address)
    made = instance(node, {GUEST_CLUSTER_LABEL: TENANT}, mac, [where])
    spoofer = scenario.world.add_machine(TENANT_NAMESPACE, "spoofer")
    count_frames(spoofer, address)
    try:
        with spoofing(spoofer, where):
            wait_for("the spoofer to get something", lambda: got_by(spoofer, scenario, address))  # which is why
        host.create(instances(TENANT_NAMESPACE), made)
        wait_for("the node's machine to be known", lambda: scenario.world.fixed_neighbours().get(where) == mac)
        scenario.wait_answer(address, WEB)
        before = frames(spoofer)
        with spoofing(spoofer, where) as claims:
            while len(claims) < 20:
                assert scenario.ask(address, WEB).port == WEB.target
        assert frames(spoofer) == before
    finally:
        host.delete(f"{instances(TENANT_NAMESPACE)}/{node}")
        announce(scenario.world.on_node(node).namespace, where)  # for all others, who did believe it
    wait_fixed(scenario, {})


def got_by(spoofer: Machine, scenario: Scenario, address: str) -> int:
    """What has come to it, after one more request."""
    with contextlib.suppress(OSError):
        scenario.world.client.get(address, WEB.port, timeout=0.3)
    return frames(spoofer)


def count_frames(machine: Machine, vip: str) -> None:
    """Count what comes to it for the VIP, or from the host's forwarding."""
    own = NETWORK[AGENT_NUMBER]
    rules = f"""table ip seen {{
        counter got {{ }}
        chain in {{
            type filter hook prerouting priority -300
            ip daddr {vip} counter name got
            ip saddr {own} counter name got
        }}
    }}"""
    machine.wires.run("nft", rules)


def frames(machine: Machine) -> int:
    words = machine.wires.run("nft", "list", "counter", "ip", "seen", "got").split()
    return int(words[words.index("packets") + 1])


@contextlib.contextmanager
def spoofing(machine: Machine, address: str) -> Iterator[list[str]]:
    """It has the address too, answers for it, and keeps telling everybody so; yields what it has told."""
    done = threading.Event()
    claims: list[str] = []

    def insist() -> None:
        while not done.wait(0.02):
            announce(machine.wires, address)
            claims.append(address)

    machine.wires.ip(f"address add {address}/32 dev eth0")
    thread = threading.Thread(target=insist)
    thread.start()
    try:
        yield claims
    finally:
        done.set()
        thread.join()
        machine.wires.ip(f"address delete {address}/32 dev eth0")
