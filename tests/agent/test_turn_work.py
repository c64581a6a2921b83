"""What one change costs the agent does not grow with the load balancers that are there.

Counted, not timed: the bytecodes that our own code executes, and the memory that is allocated at once (a copy of all
addresses is one bytecode).
"""

import asyncio
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from types import FrameType
from typing import TYPE_CHECKING, Self

import pytest

from cloudprovider.core.api.loadbalancer import Listener
from tests.agent.test_forwarder import World
from tests.core.test_forwarding import cluster, lb

if TYPE_CHECKING:
    from _typeshed import TraceFunction

FEW, MANY = 20, 400
ROUNDS = 7
FIRST = IPv4Address("10.1.0.1")


class Counted:
    """The bytecodes of the agent and its core, while this is entered."""

    def __init__(self) -> None:
        self.bytecodes = 0

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, _event: str, _arg: object) -> "TraceFunction | None":
        if not any(part in frame.f_code.co_filename for part in ("/cloudprovider/agent/", "/cloudprovider/core/")):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._executed

    def _executed(self, _frame: FrameType, event: str, _arg: object) -> "TraceFunction":
        self.bytecodes += event == "opcode"
        return self._executed


async def turns() -> None:
    """Whoever was woken has had its turn: in the fakes nothing takes time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def crowded(world: World, count: int) -> None:
    """Bring up load balancers, each in a subnet of its own, so that there are as many choices, too."""
    for i in range(count):
        world.put(f"b{i}", str(FIRST + 256 * i))
    await turns()


async def changed(world: World, turn: int) -> None:
    world.table.set_load_balancer(lb("a", "10.0.0.100", Listener(port=80, backend_port=31000 + turn)))
    world.forwarder.touch(("t", "a"), turn)
    await turns()


async def came_and_went(world: World, turn: int) -> None:
    world.put("c", "10.0.0.101")
    await turns()
    world.delete("c")
    await turns()


async def nothing(world: World, _turn: int) -> None:
    world.forwarder.wake()
    await turns()


async def work(count: int, action: Callable[[World, int], Awaitable[None]], *, leaving: bool) -> tuple[int, int]:
    """Bytecodes and bytes of one action, among ``count`` load balancers: the least of some rounds, as now and then
    something that goes by time comes between."""
    world = World()
    least = []
    async with world.running():
        world.put()
        await crowded(world, count)
        await world.until(world.in_line)
        if leaving:  # all wait for the drain time of one node's connections
            world.table.set_cluster(cluster("n1"))
            world.forwarder.wake()
            await turns()
        for turn in range(ROUNDS):
            with Counted() as counted:
                await action(world, turn)
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            await action(world, turn + ROUNDS)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            least.append((counted.bytecodes, peak - before))
            assert world.in_line()
    codes, sizes = zip(*least, strict=True)
    return min(codes), min(sizes)


@pytest.mark.parametrize("leaving", [False, True], ids=["quiet", "while a node's connections drain"])
@pytest.mark.parametrize("action", [changed, came_and_went, nothing])
async def test_a_change_costs_the_same_however_many_there_are(
    action: Callable[[World, int], Awaitable[None]], leaving: bool
) -> None:
    few, many = await work(FEW, action, leaving=leaving), await work(MANY, action, leaving=leaving)
    print("bytecodes and bytes:", few, many)
    assert many[0] <= 1.02 * few[0], f"bytecodes: {few[0]:,} among {FEW}, {many[0]:,} among {MANY}"
    assert many[1] <= few[1] + 4 * (MANY - FEW), f"bytes: {few[1]:,} among {FEW}, {many[1]:,} among {MANY}"
