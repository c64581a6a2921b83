"""A host that is newer than this guest: what it says is understood as far as it can be, and refused in words."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from cloudprovider.bridge import codec
from cloudprovider.bridge.api import PROTOCOL_VERSION, Disconnected, Reason
from cloudprovider.bridge.failures import DOMAIN, trailer
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import StateCondition
from tests.bridge.backend_contract import REQUEST, WEB
from tests.bridge.conftest import Bridge

UNKNOWN_FIELD = b"\x9a\x06\x03new"
"""Field 99, length-delimited: "new"."""


@dataclass
class NewerHost:
    """Speaks ``version`` whatever the guest asks, and refuses every Service for ``reason``."""

    reason: str = Reason.NOT_CONNECTED
    version: int = PROTOCOL_VERSION + 1
    calls: Counter[str] = field(default_factory=Counter)
    port: int = 0

    async def connect(
        self, request: pb.ConnectRequest, context: "grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]"
    ) -> pb.ConnectResponse:
        self.calls["Connect"] += 1
        return pb.ConnectResponse(host_version="9.9.9", protocol_version=self.version)

    async def ensure(
        self,
        request: pb.EnsureLoadBalancerRequest,
        context: "grpc.aio.ServicerContext[pb.EnsureLoadBalancerRequest, pb.EnsureLoadBalancerResponse]",
    ) -> pb.EnsureLoadBalancerResponse:
        self.calls["EnsureLoadBalancer"] += 1
        status = Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message="the moon is full")
        status.details.add().Pack(ErrorInfo(reason=self.reason, domain=DOMAIN))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, status.message, trailer(status))
        raise AssertionError("abort raises")


@pytest.fixture
async def newer(bridge: Bridge) -> AsyncIterator[NewerHost]:
    host = NewerHost()
    server = grpc.aio.server()
    handlers = {
        "Connect": grpc.unary_unary_rpc_method_handler(
            host.connect, pb.ConnectRequest.FromString, pb.ConnectResponse.SerializeToString
        ),
        "EnsureLoadBalancer": grpc.unary_unary_rpc_method_handler(
            host.ensure, pb.EnsureLoadBalancerRequest.FromString, pb.EnsureLoadBalancerResponse.SerializeToString
        ),
    }
    name = pb.DESCRIPTOR.services_by_name["LoadBalancerBridge"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    pair, ca = bridge.authority.server(), bridge.authority.ca
    credentials = grpc.ssl_server_credentials(
        [(pair.key, pair.certificate)], root_certificates=ca.certificate, require_client_auth=True
    )
    host.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield host
    await server.stop(grace=0.2)


def says_what_to_do(error: BridgeError) -> bool:
    words = ("version 9.9.9", f"version {PROTOCOL_VERSION + 1} of", f"version {PROTOCOL_VERSION}:", "upgrade the older")
    return (error.reason, error.retryable) == (Reason.UNSUPPORTED_VERSION, False) and all(
        w in str(error) for w in words
    )


async def test_a_host_that_is_older_and_renews_nothing(bridge: Bridge, newer: NewerHost) -> None:
    newer.version = PROTOCOL_VERSION
    with pytest.raises(BridgeError) as e:
        await bridge.client(port=newer.port).renew_certificate(b"")
    assert (e.value.reason, e.value.retryable) == (Reason.UNSUPPORTED_VERSION, False)
    assert "older" in str(e.value)


async def test_a_version_that_is_not_spoken_here_is_refused(bridge: Bridge, newer: NewerHost) -> None:
    with pytest.raises(BridgeError) as e:
        await bridge.client(port=newer.port).connect()
    assert says_what_to_do(e.value), e.value


async def test_a_call_asks_once_and_gives_up(bridge: Bridge, newer: NewerHost) -> None:
    """NOT_CONNECTED leads to one introduction; as that fails, the call is not made again."""
    with pytest.raises(BridgeError) as e:
        await bridge.client(port=newer.port).ensure(WEB, REQUEST)
    assert says_what_to_do(e.value), e.value
    assert newer.calls == {"EnsureLoadBalancer": 1, "Connect": 1}


async def test_a_call_is_made_again_only_once(bridge: Bridge, newer: NewerHost) -> None:
    newer.version = PROTOCOL_VERSION
    with pytest.raises(BridgeError) as e:
        await bridge.client(port=newer.port).ensure(WEB, REQUEST)
    assert e.value.reason == Reason.NOT_CONNECTED
    assert newer.calls == {"EnsureLoadBalancer": 2, "Connect": 1}


async def test_a_watch_tells_it_each_time_and_waits_longer(bridge: Bridge, newer: NewerHost) -> None:
    watched = bridge.watch(bridge.client(port=newer.port))
    await watched.until(lambda: len(watched.of(Disconnected)) >= 4)
    broken = watched.of(Disconnected)[:4]
    assert all(says_what_to_do(each.error) for each in broken)
    assert broken[3].retry_in > 2 * broken[0].retry_in
    assert newer.calls == {"Connect": len(watched.of(Disconnected))}


async def test_a_reason_that_is_not_known_here_is_passed_on(bridge: Bridge, newer: NewerHost) -> None:
    newer.reason = "FULL_MOON"
    with pytest.raises(BridgeError, match="the moon is full") as e:
        await bridge.client(port=newer.port).ensure(WEB, REQUEST)
    assert (e.value.reason, e.value.retryable) == ("FULL_MOON", False)
    assert newer.calls == {"EnsureLoadBalancer": 1}


def test_a_state_with_more_in_it_than_is_known_here() -> None:
    address = pb.Address.FromString(pb.Address(ip="192.0.2.1", ip_pool="p").SerializeToString() + UNKNOWN_FIELD)
    condition = pb.Condition(type="Frozen", status="Perhaps", reason="FullMoon", message="wait for the sun")
    message = pb.LoadBalancerState(
        service=codec.service_to_wire(WEB),
        addresses=[address],
        conditions=[condition],
        host_object="a/b",
        mode="tunnel",
    )
    state = codec.state_from_wire(pb.LoadBalancerState.FromString(message.SerializeToString() + UNKNOWN_FIELD))
    assert state.service == WEB
    assert [(str(a.ip), a.ip_pool) for a in state.addresses] == [("192.0.2.1", "p")]
    assert state.conditions == (StateCondition("Frozen", "Unknown", "FullMoon", "wait for the sun"),)
    assert (state.host_object, state.mode) == ("a/b", "")
