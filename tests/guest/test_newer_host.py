"""A host that is newer than this guest, over a real connection: Services get what can be understood, and say what
can't."""

from collections.abc import Callable

import msgspec
import pytest

from cloudprovider.bridge import codec
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.core.exchange import LoadBalancerState
from cloudprovider.kube.resources import LOADBALANCERS
from tests.bridge.test_newer_host import UNKNOWN_FIELD
from tests.guest.chain import Wire
from tests.guest.world import TENANT

Alter = Callable[[pb.LoadBalancerState], None]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Alter], None]:
    """Lets the host write each state with what ``alter`` does to it, and a field that is not known here."""
    shipped = codec.state_to_wire

    def alter_states(alter: Alter) -> None:
        def written(state: LoadBalancerState) -> pb.LoadBalancerState:
            message = shipped(state)
            alter(message)
            message.MergeFromString(UNKNOWN_FIELD)
            return message

        monkeypatch.setattr(codec, "state_to_wire", written)

    return alter_states


async def test_what_is_not_known_in_a_state_hides_nothing(wire: Wire, newer: Callable[[Alter], None]) -> None:
    def alter(state: pb.LoadBalancerState) -> None:
        state.mode = "tunnel"
        state.conditions.add(type="Frozen", status="Perhaps", reason="FullMoon", message="wait for the sun")
        for condition in state.conditions:
            condition.MergeFromString(UNKNOWN_FIELD)

    newer(alter)
    bridge = wire.client(wire.authority.write("client", wire.authority.client()))
    async with wire.guest.leading(bridge) as leadership:
        await wire.guest.create()
        (ip,) = await wire.guest.until_ready()
        condition = await wire.guest.ready()
        assert condition is not None
        assert condition.message.startswith(f"reachable at {ip} (pool default)")
        assert "mode" not in condition.message.split(";")[0]
        assert leadership.host.connected
        assert bridge.calls == {"connect": 1, "ensure": 1}


async def test_a_reason_that_is_not_known_here_is_told_as_it_is(wire: Wire) -> None:
    """As the agent of a newer host would write it."""

    async def report(*conditions: dict[str, str]) -> None:
        (lb,) = wire.chain.host.caches.load_balancers_of(TENANT)
        status = {"holder": msgspec.to_builtins(lb.status.holder), "conditions": list(conditions)}
        patch = {"apiVersion": LOADBALANCERS.api_version, "kind": LOADBALANCERS.kind, "status": status}
        await wire.chain.world.client.apply(
            LOADBALANCERS, *lb.key, patch, field_manager="cloudprovider-agent", subresource="status"
        )

    bridge = wire.client(wire.authority.write("client", wire.authority.client()))
    async with wire.guest.leading(bridge):
        await wire.guest.create()
        had = await wire.guest.until_ready()
        await report({"type": "Programmed", "status": "False", "reason": "FullMoon", "message": "wait for the sun"})
        condition = await wire.guest.until_reason("FullMoon")
        assert (condition.status, condition.message) == ("False", "wait for the sun")
        await wire.guest.until_true(lambda: wire.guest.guest.requests.total(resource="events") == 2)
        assert [(e.reason, e.message) for e in await wire.guest.events("Warning")] == [("FullMoon", "wait for the sun")]
        await report()
        assert await wire.guest.until_ready() == had
        assert bridge.calls == {"connect": 1, "ensure": 1}


async def test_a_state_that_makes_no_sense_breaks_only_itself(wire: Wire, newer: Callable[[Alter], None]) -> None:
    """An address that is none can't be shown; the other Services are served all the same."""

    def alter(state: pb.LoadBalancerState) -> None:
        if state.service.name == "odd":
            for address in state.addresses:
                address.ip = "here"

    newer(alter)
    bridge = wire.client(wire.authority.write("client", wire.authority.client()))
    async with wire.guest.leading(bridge):
        await wire.guest.create("odd")
        await wire.guest.create("web")
        assert await wire.guest.until_ready("web")
        condition = await wire.guest.until_reason("AddressNotUnderstood", "odd")
        assert "the address 'here', which this guest can't read" in condition.message
        assert await wire.guest.ips("odd") == []
        assert bridge.calls == {"connect": 1, "ensure": 2}
