"""What only the real speaker does: bgpd as a process."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml

from cloudprovider.core.bgp import Attributes
from cloudprovider.core.bgpconfig import commands, config, parse
from cloudprovider.frr.vty import Vty
from cloudprovider.routing.bgpd import PROGRAM
from tests.dataplane.lan import run, until
from tests.routing.test_contract import MARKED, ONE, PLAIN, SIX, TWO, heard, path, spoken
from tests.routing.world import (
    ASN,
    HOST,
    LIMIT,
    PACE,
    ROUTER_ASN,
    RealRouter,
    RealWorld,
    Running,
    alive,
    neighbor,
    speech,
)

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]


@contextlib.contextmanager
def agent(world: RealWorld, router: RealRouter, vip: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent as a process of its own, under the capabilities of its pod; ended by SIGKILL where it still runs."""
    manifest = yaml.safe_load((ROOT / "manifests/host/agent.yaml").read_text())
    *limited, _program = manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    where = map(str, (world.host.path, world.directory, router.address, vip))
    process = subprocess.Popen([*limited, sys.executable, "-m", "tests.routing.agent", *where], cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def check_process(pid: int, world: RealWorld) -> None:
    assert Path(f"/proc/{pid}").owner() == "frr"
    assert str(Path(f"/proc/{pid}/ns/net").readlink()) == f"net:[{world.host.path.stat().st_ino}]"


async def test_an_agent_with_the_rights_of_its_pod_speaks_and_ends_in_order(real: RealWorld) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN)
    with agent(real, router, ONE) as process:
        await heard(router, {ONE: path()})
        pid = real.pid
        check_process(pid, real)
        assert stat.S_IMODE(real.directory.stat().st_mode) == 0o700
        assert run("ip netns exec host ss -Htln") == "", "nothing is listened on"
        process.terminate()
        await heard(router, {ONE: path(preference=0, graceful=True)}, limit=5)
        await heard(router, {}, limit=5)
        await until(lambda: process.poll() is not None, "the end of the agent")
        assert process.returncode == 0
    assert not alive(pid)
    assert list(real.directory.iterdir()) == []


async def test_the_next_agent_goes_on_with_the_bgpd_of_a_killed_one(real: RealWorld) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN)
    with agent(real, router, ONE):
        await heard(router, {ONE: path()})
    pid = real.pid
    speaker = real.speaker()
    async with Running(speaker) as running:
        assert dict(router.paths()) == {ONE: path()}, "until it is told anything, it goes on"
        speaker.speak(speech(neighbor("tor", router.address), routes={TWO: {"tor": PLAIN}}))
        await heard(router, {TWO: path()})
        await running.until("tor", "Established")
        assert real.pid == pid
        assert router.frr.say("show bgp neighbors json").count('"connectionsDropped":0') == 1
    await until(lambda: not alive(pid), "the end of bgpd")


async def test_with_nobody_to_speak_to_the_bgpd_of_a_killed_agent_is_ended(real: RealWorld) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN)
    with agent(real, router, ONE):
        await heard(router, {ONE: path()})
    pid = real.pid
    speaker = real.speaker()
    speaker.speak(None)
    async with Running(speaker):
        await until(lambda: not alive(pid), "the end of bgpd")
        await heard(router, {})


async def test_bgpd_shows_again_what_it_is_told(real: RealWorld) -> None:
    """So that an agent which finds it does nothing that is not needed."""
    router = real.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN)
    tor = neighbor("tor", router.address, password="it's!#\"$?|%")  # noqa: S106 - none
    far = replace(tor, name="far", address=ip_address("10.60.0.1"), port=1179, multi_hop=True, hold=0, keepalive=0)
    inner = replace(tor, name="inner", address=ip_address("10.99.0.77"), asn=ASN, multi_hop=True, password="")
    routes = {
        ONE: {"tor": MARKED, "far": PLAIN},
        TWO: {"inner": MARKED},
        SIX: {"tor": Attributes(communities=("blackhole",))},
    }
    said = speech(tor, far, inner, routes=routes, graceful=True)
    speaker = real.speaker()
    speaker.speak(said)
    async with Running(speaker) as running:
        await running.until("far", "Connecting")
        assert "tor" in speaker.sessions
        connection = await speaker.daemon.find()
        assert connection is not None
        vty = Vty(connection)
        await vty.say("enable")
        shown = parse(await vty.say("show running-config"))
        connection.close()
        assert commands(shown, config(said)) == []


async def test_what_a_router_says_is_not_taken(real: RealWorld) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    family = ("address-family ipv4 unicast", "network 192.0.2.0/24", "network 0.0.0.0/0", "exit-address-family")
    router.frr.configure("no bgp network import-check", *family)
    routes = run("ip -4 -n host route show table all")
    async with spoken(real, router) as running:
        told = "show bgp ipv4 unicast neighbors 10.99.0.2 advertised-routes json"
        await until(lambda: "192.0.2.0/24" in router.frr.say(told), "the router to say something")
        connection = await running.speaker.daemon.find()  # type: ignore[attr-defined]
        vty = Vty(connection)
        await vty.say("enable")
        taken = await vty.say("show bgp ipv4 unicast json")
        connection.close()
        assert "192.0.2.0/24" not in taken
        assert "0.0.0.0/0" not in taken
        assert run("ip -4 -n host route show table all") == routes
        assert router.frr.prefixes() == {f"{ONE}/32", "192.0.2.0/24", "0.0.0.0/0"}


@pytest.mark.parametrize(
    ("address", "source", "vips"), [("10.99.0.11", "10.99.0.3", (ONE, TWO)), ("fd99::11", "fd99::3", (SIX, "fd50::2"))]
)
async def test_what_a_router_passes_on_of_one_host_ends_no_session_of_another(
    real: RealWorld, address: str, source: str, vips: tuple[str, str]
) -> None:
    """It knows its link-local address, and names it as a next hop of what it passes on by IPv6."""
    router = real.router(address, ROUTER_ASN, kernel=True)
    tor = neighbor("tor", router.address)
    speakers = {str(tor.source): real.speaker(), source: real.another(source)}
    for host in speakers:
        router.know(host, ASN)

    def say(*vips: str) -> None:
        said = speech(tor, routes={vip: {"tor": MARKED} for vip in vips})
        speakers[str(tor.source)].speak(said)
        own = ip_address(source)
        hops = {**said.next_hops, own.version: own}
        other = replace(said, router_id="10.99.0.3", next_hops=hops, neighbors=(replace(tor, source=own),))
        speakers[source].speak(other)

    one, two = vips
    async with Running(speakers[source]), Running(speakers[str(tor.source)]):
        for those in ((one,), (one, two), (two,), (), (one, two)):
            say(*those)

            def all_said(those: tuple[str, ...] = those) -> bool:
                prefixes = {f"{vip}/{128 if ':' in vip else 32}" for vip in those}
                return router.frr.prefixes() == prefixes and all(len(router.frr.paths(vip)) == 2 for vip in those)

            await until(all_said, f"{those} of both", limit=LIMIT)
        assert [speaker.sessions["tor"].drops for speaker in speakers.values()] == [0, 0]


async def test_ten_thousand_addresses_are_said_and_one_more(real: RealWorld) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    async with spoken(real, router) as running:
        tor = neighbor("tor", router.address)
        many = {str(ip_address(ONE) + n): {"tor": PLAIN} for n in range(10_000)}
        running.speaker.speak(speech(tor, routes=many))
        took = await until(lambda: running.speaker.sessions["tor"].advertised == 10_000, "all of them", limit=LIMIT)
        running.speaker.speak(speech(tor, routes={**many, TWO + "9": {"tor": PLAIN}, "10.90.0.1": {"tor": PLAIN}}))
        more = await until(lambda: len(router.frr.paths("10.90.0.1")) == 1, "one more", limit=LIMIT)
        print(f"10,000 addresses said after {took:.2f} s, one more after {more:.2f} s")
        assert running.speaker.sessions["tor"].drops == 0


async def test_a_bgpd_that_hangs_is_replaced(real: RealWorld) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN)
    speaker = real.speaker(replace(PACE, deadline=0.5))
    speaker.speak(speech(neighbor("tor", router.address), routes={ONE: {"tor": PLAIN}}))
    async with Running(speaker) as running:
        await running.until("tor", "Established")
        pid = real.pid
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: speaker.trouble.startswith("bgpd: no answer to"), "the trouble told")
        await running.until("tor", "Established")
        assert not alive(pid)
        assert speaker.trouble == ""


async def test_a_bgpd_that_can_not_be_started_is_told_and_tried_again(
    real: RealWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    router.know(HOST, ASN)
    program = tmp_path / "bgpd"
    program.write_text("#!/bin/sh\necho no room left\nexit 3\n")
    program.chmod(0o755)
    speaker = real.speaker(replace(PACE, retry=0.05), str(program))
    speaker.speak(speech(neighbor("tor", router.address, password="s3cret"), routes={}))  # noqa: S106 - none
    async with Running(speaker) as running:
        await until(lambda: len(caplog.records) >= 3, "attempts")
        fields = [record.__dict__ for record in caplog.records]
        assert [f["retry_seconds"] for f in fields[:3]] == [0.05, 0.1, 0.2]
        assert fields[0]["error"].endswith("did not start (status 3): no room left")
        assert speaker.trouble.endswith("no room left")
        program.unlink()
        program.symlink_to(PROGRAM)
        await running.until("tor", "Connecting")
        assert "s3cret" not in caplog.text


async def test_what_bgpd_refuses_is_told_without_the_password(
    real: RealWorld, caplog: pytest.LogCaptureFixture
) -> None:
    router = real.router("10.99.0.11", ROUTER_ASN)
    speaker = real.speaker()
    wrong = replace(neighbor("tor", router.address), password="s3cret " * 30)
    speaker.speak(speech(wrong, routes={}))
    async with Running(speaker):
        await until(lambda: bool(caplog.records), "a refusal")
        told = caplog.records[0].__dict__["error"]
        assert told.startswith("'neighbor 10.99.0.11 password ...' is refused: ")
        assert "s3cret" not in caplog.text
