"""The tenant boundary and the connection, over real TLS on loopback."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloudprovider.bridge import client as client_module
from cloudprovider.bridge.api import PROTOCOL_VERSION, Connected, Disconnected, Reason, StateChange, TenantPolicy
from cloudprovider.bridge.certificates import KeyPair
from cloudprovider.bridge.client import GrpcBridge
from cloudprovider.bridge.failures import from_rpc_error
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.bridge.v1 import bridge_pb2_grpc as pb_grpc
from cloudprovider.core.errors import BridgeError, ConfigurationError, InvalidRequest
from cloudprovider.core.exchange import Tenant
from tests.bridge.backend_contract import REQUEST, WEB, keys
from tests.bridge.conftest import HELLO, Bridge
from tests.bridge.proxy import Line
from tests.bridge.tls import DAY, DOMAIN, OTHER, TENANT, Authority, now
from tests.bridge.waiting import Watched


async def refused(client: GrpcBridge) -> BridgeError:
    with pytest.raises(BridgeError) as e:
        await client.ensure(WEB, REQUEST)
    return e.value


def reconnected(watched: Watched, times: int) -> bool:
    return len(watched.of(Connected)) >= times


async def test_certificate_of_another_ca(bridge: Bridge) -> None:
    foreign = Authority.make(bridge.authority.folder / "foreign")
    paths = foreign.write("client", foreign.client(), ca=bridge.authority.ca)
    error = await refused(bridge.client(paths))
    assert error.reason == Reason.CERTIFICATE_INVALID, error
    assert str(paths.certificate) in str(error)
    assert not bridge.backend.calls


async def test_server_of_another_ca(bridge: Bridge) -> None:
    foreign = Authority.make(bridge.authority.folder / "foreign")
    paths = bridge.authority.write("client", bridge.authority.client(), ca=foreign.ca)
    error = await refused(bridge.client(paths))
    assert error.reason == Reason.CERTIFICATE_INVALID, error
    assert str(paths.ca) in str(error)


async def test_expired_certificate(bridge: Bridge) -> None:
    old = bridge.authority.client(made=now() - 3 * DAY)
    error = await refused(bridge.client(bridge.authority.write("client", old)))
    assert error.reason == Reason.CERTIFICATE_EXPIRED
    assert "renew" in str(error)
    assert not bridge.backend.calls


async def test_files_renewed_between_a_refusal_and_its_diagnosis(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The diagnosis reads the new files first; the channel is made anew all the same."""
    monkeypatch.setattr(client_module, "DIAGNOSIS_SECONDS", 0.0)
    client = bridge.client(bridge.authority.write("client", bridge.authority.client(made=now() - 3 * DAY)))
    assert (await refused(client)).reason == Reason.CERTIFICATE_EXPIRED
    bridge.authority.write("client", bridge.authority.client())
    await refused(client)  # not yet time to look at the files
    client._files_at = 0.0
    await client.ensure(WEB, REQUEST)


async def test_certificate_that_is_not_valid_yet(bridge: Bridge) -> None:
    early = bridge.authority.client(made=now() + 3 * DAY)
    error = await refused(bridge.client(bridge.authority.write("client", early)))
    assert error.reason == Reason.CERTIFICATE_EXPIRED
    assert "clock" in str(error)


async def test_certificate_expires_while_connected(bridge: Bridge) -> None:
    """The handshake is past; the date still counts, for calls and for open streams."""
    client = bridge.client()
    watched = bridge.watch(client)
    await watched.until(lambda: reconnected(watched, 1))
    bridge.clock = lambda: now() + 2 * DAY
    bridge.backend.set_tenant(TENANT, bridge.backend.tenants[TENANT])
    broken = await watched.until(lambda: watched.of(Disconnected))
    assert broken[0].error.reason == Reason.CERTIFICATE_EXPIRED
    assert (await refused(client)).reason == Reason.CERTIFICATE_EXPIRED


async def test_stream_ends_by_itself_at_not_after(bridge: Bridge) -> None:
    bridge.clock = lambda: now() + DAY - timedelta(seconds=2)
    watched = bridge.watch(bridge.client())
    await watched.until(lambda: any(c.synced for c in watched.of(StateChange)))
    broken = await watched.until(lambda: watched.of(Disconnected))
    assert broken[0].error.reason == Reason.CERTIFICATE_EXPIRED


async def test_certificate_of_another_tenant_reaches_only_that_tenant(bridge: Bridge) -> None:
    await bridge.client().ensure(WEB, REQUEST)
    other = bridge.client(bridge.authority.write("other", bridge.authority.client(OTHER)))
    watched = bridge.watch(other)
    await watched.until(lambda: any(c.synced for c in watched.of(StateChange)))
    await other.delete(WEB)
    await watched.until(lambda: WEB in watched.removed)
    assert not watched.states
    assert (TENANT, WEB) in bridge.backend.load_balancers


@pytest.mark.parametrize("tenant", [Tenant("tenants", "nobody"), Tenant("elsewhere", "blue")])
async def test_tenant_without_guest_cluster(bridge: Bridge, tenant: Tenant) -> None:
    error = await refused(bridge.client(bridge.authority.write("c", bridge.authority.client(tenant))))
    assert error.reason == Reason.UNKNOWN_TENANT
    assert tenant.path in str(error)


async def test_other_trust_domain(bridge: Bridge) -> None:
    pair = bridge.authority.client(domain="elsewhere.local")
    error = await refused(bridge.client(bridge.authority.write("c", pair)))
    assert error.reason == Reason.CERTIFICATE_INVALID, error


async def test_server_certificate_is_no_tenant(bridge: Bridge) -> None:
    with pytest.raises(ConfigurationError, match="not made for clients"):
        bridge.client(bridge.server_paths)
    async with channel(bridge, bridge.authority.server()) as open_channel:
        stub: pb_grpc.LoadBalancerBridgeAsyncStub = pb_grpc.LoadBalancerBridgeStub(open_channel)
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await stub.Connect(pb.ConnectRequest(cluster_uid=HELLO.cluster_uid, protocol_version=1), timeout=10)
    assert e.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
    assert not bridge.backend.calls


@pytest.mark.parametrize("how", ["fingerprint", "date"])
async def test_revocation_ends_calls_and_open_streams(bridge: Bridge, how: str) -> None:
    pair = bridge.authority.client()
    client = bridge.client(bridge.authority.write("client", pair))
    watched = bridge.watch(client)
    await watched.until(lambda: reconnected(watched, 1))
    tenant = bridge.backend.tenants[TENANT]
    policy = (
        replace(tenant.policy, revoked_fingerprints=frozenset({pair.fingerprint}))
        if how == "fingerprint"
        else replace(tenant.policy, revoked_before=now())
    )
    bridge.backend.set_tenant(TENANT, replace(tenant, policy=policy))
    broken = await watched.until(lambda: watched.of(Disconnected))
    assert broken[0].error.reason == Reason.CERTIFICATE_REVOKED
    assert not broken[0].error.retryable
    assert (await refused(client)).reason == Reason.CERTIFICATE_REVOKED
    bridge.backend.set_tenant(TENANT, tenant)
    await watched.until(lambda: reconnected(watched, 2))


async def test_deleted_tenant_ends_streams(bridge: Bridge) -> None:
    watched = bridge.watch(bridge.client())
    await watched.until(lambda: reconnected(watched, 1))
    bridge.backend.set_tenant(TENANT, None)
    broken = await watched.until(lambda: watched.of(Disconnected))
    assert broken[0].error.reason == Reason.UNKNOWN_TENANT


async def test_cut_connection_heals_and_resumes(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "DIAGNOSIS_SECONDS", 0.1)
    client = bridge.client()
    watched = bridge.watch(client)
    await watched.until(lambda: any(c.synced for c in watched.of(StateChange)))
    first, second, third = keys(3)
    await client.ensure(first, REQUEST)
    await watched.until(lambda: first in watched.states)
    await bridge.stop()
    gone = await watched.until(lambda: [d for d in watched.of(Disconnected) if "nothing listens" in str(d.error)])
    assert gone[0].error.retryable
    await bridge.backend.ensure(TENANT, second, REQUEST, ())
    await bridge.backend.delete(TENANT, first)
    await bridge.start(bridge.port)
    await watched.until(lambda: second in watched.states and first not in watched.states)
    assert watched.of(Connected)[-1].resumed
    await client.ensure(third, REQUEST)
    await watched.until(lambda: third in watched.states)


async def test_a_line_that_goes_dead_without_a_word(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepalive finds out; a call on it ends at its deadline."""
    quick = {"grpc.http2.ping_timeout_ms": 1000, "grpc.keepalive_time_ms": 1000}
    monkeypatch.setattr(client_module, "_OPTIONS", list({**dict(client_module._OPTIONS), **quick}.items()))
    monkeypatch.setattr(client_module, "CALL_SECONDS", 0.3)
    line = Line(bridge.port)
    await line.start()
    bridge.stack.push_async_callback(line.close)
    client = bridge.client(port=line.port)
    watched = bridge.watch(client)
    await watched.until(lambda: any(c.synced for c in watched.of(StateChange)))
    line.cut()
    error = await refused(client)
    assert error.reason == Reason.DEADLINE_EXCEEDED
    assert error.retryable
    await watched.until(lambda: watched.of(Disconnected))
    await watched.until(lambda: reconnected(watched, 2))
    assert watched.of(Connected)[-1].resumed
    await client.ensure(WEB, REQUEST)
    await watched.until(lambda: WEB in watched.states)


async def test_a_host_that_forgot_sends_everything_again(bridge: Bridge) -> None:
    client = bridge.client()
    watched = bridge.watch(client)
    first, second = keys(2)
    await client.ensure(first, REQUEST)
    await watched.until(lambda: first in watched.states)
    await bridge.stop()
    bridge.backend._logs.clear()  # a new process has a new epoch
    await bridge.backend.ensure(TENANT, second, REQUEST, ())
    await bridge.start(bridge.port)
    await watched.until(lambda: set(watched.states) == {second})
    assert not watched.of(Connected)[-1].resumed


async def test_graceful_stop_tells_the_streams(bridge: Bridge) -> None:
    watched = bridge.watch(bridge.client())
    await watched.until(lambda: reconnected(watched, 1))
    await bridge.stop()
    broken = await watched.until(lambda: watched.of(Disconnected))
    assert broken[0].error.reason == Reason.UNAVAILABLE
    assert "ending" in str(broken[0].error)
    assert broken[0].retry_in >= 1.0


async def test_client_certificate_is_rotated(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FILES_SECONDS", 0.05)
    first = bridge.authority.client()
    paths = bridge.authority.write("client", first)
    client = bridge.client(paths)
    watched = bridge.watch(client)
    await client.ensure(WEB, REQUEST)
    await watched.until(lambda: WEB in watched.states)
    bridge.authority.write("client", bridge.authority.client())
    await watched.until(lambda: reconnected(watched, 2))
    assert watched.of(Connected)[-1].resumed
    assert not watched.of(Disconnected)
    tenant = bridge.backend.tenants[TENANT]
    policy = replace(tenant.policy, revoked_fingerprints=frozenset({first.fingerprint}))
    bridge.backend.set_tenant(TENANT, replace(tenant, policy=policy))
    await client.ensure(WEB, REQUEST)


async def test_server_certificate_is_rotated(bridge: Bridge) -> None:
    """A new CA on both sides: only a server that has read its files again can serve the second client."""
    client = bridge.client()
    await client.ensure(WEB, REQUEST)
    renewed = Authority.make(bridge.authority.folder / "renewed")
    bridge.authority.write("server", renewed.server(), ca=renewed.ca)
    second = bridge.client(renewed.write("client", renewed.client()))
    await second.ensure(WEB, REQUEST)
    await client.ensure(WEB, REQUEST)


async def test_half_written_files_are_not_taken(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    bridge.server_paths.key.write_bytes(bridge.authority.server().key)
    with caplog.at_level(logging.WARNING):
        await bridge.client().ensure(WEB, REQUEST)
    assert "does not belong" in str([getattr(r, "error", "") for r in caplog.records])


async def test_rate(bridge: Bridge) -> None:
    tenant = bridge.backend.tenants[TENANT]
    bridge.backend.set_tenant(TENANT, replace(tenant, policy=TenantPolicy(calls_per_second=5)))
    client = bridge.client()
    await client.connect()
    results = await asyncio.gather(*(client.ensure(WEB, REQUEST) for _ in range(30)), return_exceptions=True)
    limited = [r for r in results if isinstance(r, BridgeError)]
    assert {r.reason for r in limited} == {Reason.RATE_LIMITED}
    assert all(r.retryable and r.retry_after for r in limited)
    assert 5 <= len(results) - len(limited) <= 12


async def test_streams_are_bounded(bridge: Bridge) -> None:
    tenant = bridge.backend.tenants[TENANT]
    bridge.backend.set_tenant(TENANT, replace(tenant, policy=TenantPolicy(streams=1)))
    first = bridge.watch(bridge.client())
    await first.until(lambda: reconnected(first, 1))
    second = bridge.watch(bridge.client())
    broken = await second.until(lambda: second.of(Disconnected))
    assert broken[0].error.reason == Reason.QUOTA_EXCEEDED


async def test_a_fault_of_the_host_does_not_leak(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    client = bridge.client()
    await client.ensure(WEB, REQUEST)
    bridge.backend.failure = ZeroDivisionError("secret")
    error = await refused(client)
    assert error.reason == Reason.INTERNAL
    assert "secret" not in str(error)
    assert any(r.exc_info and "secret" in str(r.exc_info[1]) for r in caplog.records)


async def test_malformed_requests_are_refused_field_by_field(bridge: Bridge) -> None:
    await bridge.client().connect()
    bad = pb.EnsureLoadBalancerRequest(
        service=pb.ServiceKey(namespace="default", name="x" * 64),
        spec=pb.LoadBalancerSpec(
            listeners=[
                pb.Listener(protocol=pb.PROTOCOL_TCP, port=70000),
                pb.Listener(port=80),
                pb.Listener(protocol=pb.PROTOCOL_UDP, port=53),
                pb.Listener(protocol=pb.PROTOCOL_UDP, port=53),
            ],
            addresses=["198.18.0.300"],
            source_ranges=["10.0.0.1/8"],
        ),
    )
    pair = bridge.authority.client()
    async with channel(bridge, pair) as open_channel:
        stub: pb_grpc.LoadBalancerBridgeAsyncStub = pb_grpc.LoadBalancerBridgeStub(open_channel)
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await stub.EnsureLoadBalancer(bad, timeout=10, metadata=(("cluster-uid", HELLO.cluster_uid),))
    error = from_rpc_error(e.value)
    assert isinstance(error, InvalidRequest)
    assert {v.field for v in error.violations} == {
        "service.name",
        "service.uid",
        "spec.ports[0].port",
        "spec.ports[1].protocol",
        "spec.ports[3].port",
        "spec.addresses[0]",
        "spec.loadBalancerSourceRanges[0]",
    }


@pytest.mark.parametrize(("highest", "lowest", "fine"), [(1, 1, True), (7, 1, True), (7, 2, False), (0, 0, False)])
async def test_versions(bridge: Bridge, highest: int, lowest: int, fine: bool) -> None:
    request = pb.ConnectRequest(
        cluster_uid=HELLO.cluster_uid, guest_version="9", protocol_version=highest, min_protocol_version=lowest
    )
    async with channel(bridge, bridge.authority.client()) as open_channel:
        stub: pb_grpc.LoadBalancerBridgeAsyncStub = pb_grpc.LoadBalancerBridgeStub(open_channel)
        if fine:
            assert (await stub.Connect(request, timeout=10)).protocol_version == PROTOCOL_VERSION
            return
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await stub.Connect(request, timeout=10)
    error = from_rpc_error(e.value)
    assert isinstance(error, BridgeError)
    assert error.reason == Reason.UNSUPPORTED_VERSION


async def test_health(bridge: Bridge) -> None:
    async with channel(bridge, bridge.authority.client()) as open_channel:
        stub = health_pb2_grpc.HealthStub(open_channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_address_that_is_taken_is_a_configuration_error(bridge: Bridge) -> None:
    config = ServerConfig(listen=f"127.0.0.1:{bridge.port}", tls=bridge.server_paths, trust_domain=DOMAIN)
    with pytest.raises(ConfigurationError, match=str(bridge.port)):
        await BridgeServer(config, bridge.backend).start()


async def test_a_name_that_does_not_resolve(bridge: Bridge) -> None:
    client = bridge.client()
    client._config = replace(client._config, target="no-such-host.invalid:7443")
    client._channel = client._open(client._files.load())
    client._stub = pb_grpc.LoadBalancerBridgeStub(client._channel)
    error = await refused(client)
    assert error.retryable
    assert "no-such-host.invalid" in str(error)


def channel(bridge: Bridge, pair: KeyPair) -> grpc.aio.Channel:
    ca = bridge.authority.ca.certificate
    credentials = grpc.ssl_channel_credentials(ca, pair.key, pair.certificate)
    return grpc.aio.secure_channel(f"127.0.0.1:{bridge.port}", credentials)
