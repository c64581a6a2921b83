"""What only the real watch does: bfdd as a process."""

import contextlib
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cloudprovider.liveness.api import Liveness
from tests.dataplane.lan import until
from tests.liveness.test_contract import pair
from tests.liveness.world import PACE, RealHost, RealHosts, Running

UP, DOWN, UNKNOWN = Liveness.UP, Liveness.DOWN, Liveness.UNKNOWN

ROOT = Path(__file__).parents[2]

REFUSING = """#!{python}
import json, socket, struct
listening = socket.socket(socket.AF_UNIX)
listening.bind("control")
listening.listen()
connection, _ = listening.accept()
stream = connection.makefile("rwb")
added = 0
while header := stream.read(8):
    length, number, kind, version = struct.unpack("!IHBB", header)
    asked = stream.read(length)
    added += kind == 2
    refused = kind == 2 and added <= 2
    answers = [(1, number, dict(status="error", error="no") if refused else dict(status="ok"))]
    if kind == 2 and not refused:
        peer = json.loads(asked)["ipv4"][0]["peer-address"]
        answers.append((4, 0, {{"op": "status", "peer-address": peer, "state": "up"}}))
    for kind, number, answer in answers:
        body = json.dumps(answer).encode()
        stream.write(struct.pack("!IHBB", len(body), number, kind, 1) + body)
    stream.flush()
"""
"""A bfdd that takes a host only when it is asked for the third time."""

pytestmark = pytest.mark.kernel


@contextlib.contextmanager
def agent(host: RealHost, others: Mapping[str, RealHost]) -> Iterator[subprocess.Popen[bytes]]:
    """An agent as a process of its own, under the capabilities of its pod; ended by SIGKILL where it still runs."""
    manifest = yaml.safe_load((ROOT / "manifests/host/agent.yaml").read_text())
    *limited, _program = manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    watched = [f"{name}={other.address}" for name, other in others.items()]
    where = map(str, (host.station.path, host.directory, host.address))
    command = [*limited, sys.executable, "-m", "tests.liveness.agent", *where, *watched]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def check_process(pid: int, host: RealHost) -> None:
    process = Path(f"/proc/{pid}")
    assert os.sched_getscheduler(pid) == os.SCHED_RR
    assert process.owner() == "frr"
    assert str((process / "ns/net").readlink()) == f"net:[{host.station.path.stat().st_ino}]"
    assert stat.S_IMODE(host.directory.stat().st_mode) == 0o700
    assert host.directory.owner() == "root"


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_the_next_agent_goes_on_with_the_bfdd_of_a_killed_one(real: RealHosts) -> None:
    one, two, three = real.host("10.99.0.11"), real.host("10.99.0.12"), real.host("10.99.0.13")
    async with Running(three.watch) as third, Running(one.watch) as first:
        third.watch.follow({"two": two.address})
        first.watch.follow({"two": two.address})
        with agent(two, {"one": one, "three": three}):
            await first.until("two", UP)
            await third.until("two", UP)
        pid = two.pid
        async with Running(two.another()) as heir:
            heir.watch.follow({"one": one.address})
            await heir.until("one", UP)
            assert two.pid == pid
            await third.until("two", UNKNOWN)  # the heir does not follow it, which it is told
            assert (first.changes, heir.changes) == ([("two", UP)], [("one", UP)])
            assert DOWN not in {liveness for _, liveness in third.changes}
        await until(lambda: ended(pid), "the end of bfdd")


async def test_an_agent_with_the_rights_of_its_pod_starts_and_ends_its_bfdd(real: RealHosts) -> None:
    one, two = real.host("10.99.0.11"), real.host("10.99.0.12")
    async with Running(one.watch) as first:
        one.watch.follow({"two": two.address})
        with agent(two, {"one": one}) as process:
            await first.until("two", UP)
            pid = two.pid
            check_process(pid, two)
            process.terminate()
            await until(lambda: process.poll() is not None, "the end of the agent")
            assert process.returncode == 0
        assert ended(pid)
        assert not two.folder.exists()
        await first.until("two", UNKNOWN)
        assert first.changes == [("two", UP), ("two", UNKNOWN)]


async def test_a_bfdd_that_hangs_is_replaced(real: RealHosts) -> None:
    one, two = real.host("10.99.0.11"), real.host("10.99.0.12")
    async with pair(one, two) as (first, _):
        pid = one.pid
        os.kill(pid, signal.SIGSTOP)
        await first.until("two", UNKNOWN)
        await first.until("two", UP)
        assert ended(pid)
        assert first.changes == [("two", UP), ("two", UNKNOWN), ("two", UP)]


async def test_bfdd_runs_before_all_others_reached_by_root_alone_and_leaves_nothing(real: RealHosts) -> None:
    one, two = real.host("10.99.0.11"), real.host("10.99.0.12")
    async with pair(one, two):
        pid = one.pid
        check_process(pid, one)
    assert ended(pid)
    assert os.listdir(one.directory) == []  # noqa: PTH208


async def test_a_bfdd_that_can_not_be_started_is_told_and_tried_again(
    real: RealHosts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = real.host("10.99.0.11"), real.host("10.99.0.12")
    program = tmp_path / "bfdd"
    program.write_text("#!/bin/sh\necho no room left\nexit 3\n")
    program.chmod(0o755)
    async with Running(one.another(replace(PACE, retry=0.05), str(program))) as first, Running(two.watch):
        first.watch.follow({"two": two.address})
        two.watch.follow({"one": one.address})
        await until(lambda: len(caplog.records) >= 3, "attempts")
        fields = [record.__dict__ for record in caplog.records]
        assert [f["retry_seconds"] for f in fields[:3]] == [0.05, 0.1, 0.2]
        assert fields[0]["network"] == "h1"
        assert fields[0]["error"].endswith("did not start (status 3): no room left")
        program.unlink()
        program.symlink_to("/usr/lib/frr/bfdd")
        await first.until("two", UP)


async def test_a_host_that_bfdd_refuses_is_asked_for_again(
    real: RealHosts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = real.host("10.99.0.11"), real.host("10.99.0.12")
    program = tmp_path / "bfdd"
    program.write_text(REFUSING.format(python=sys.executable))
    program.chmod(0o755)
    async with Running(one.another(replace(PACE, ask=0.2), str(program))) as first:
        first.watch.follow({"two": two.address})
        await first.until("two", UP)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [(w.getMessage(), w.__dict__["address"], w.__dict__["error"]) for w in warnings] == [
            ("A host is not watched: bfdd refuses it.", "10.99.0.12", "no")
        ]
    assert first.changes == [("two", UP), ("two", UNKNOWN)]


async def test_that_nobody_is_watched_without_an_address_is_told_once(
    real: RealHosts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Running(real.host().watch):
        await until(lambda: len(caplog.records) > 0, "a line")
        assert [record.getMessage() for record in caplog.records] == [
            "Hosts are not watched on a network: this one has no address of its own there."
        ]
