"""A trace over the bridge, and what a tenant may send in its place."""

import asyncio

import grpc
import pytest

from cloudprovider.bridge.codec import ensure_to_wire
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.bridge.v1 import bridge_pb2_grpc as pb_grpc
from cloudprovider.core.errors import NotPermitted, Violation
from cloudprovider.tracing.fake import MemoryTracer
from tests.bridge.backend_contract import REQUEST, WEB
from tests.bridge.conftest import HELLO, Bridge
from tests.bridge.tls import DOMAIN, TENANT

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def traced(bridge: Bridge) -> MemoryTracer:
    """Have the bridge trace."""
    await bridge.stop()
    tracer = MemoryTracer()
    config = ServerConfig(listen="127.0.0.1:0", tls=bridge.server_paths, trust_domain=DOMAIN)
    bridge.server = BridgeServer(config, bridge.backend, tracer=tracer)
    bridge.port = await bridge.server.start()
    return tracer


async def test_calls_of_a_trace_are_part_of_it(bridge: Bridge) -> None:
    tracer = await traced(bridge)
    client = bridge.client()
    await client.ensure(WEB, REQUEST, trace=CONTEXT)
    await client.delete(WEB, trace=CONTEXT)
    ensure, delete = tracer.spans
    assert (ensure.name, delete.name) == ("bridge EnsureLoadBalancer", "bridge DeleteLoadBalancer")
    assert ensure.parent == delete.parent == CONTEXT
    assert bridge.backend.traces == {"ensure": ensure.context, "delete": delete.context}
    assert ensure.attributes == {
        "cloudprovider.tenant": TENANT.path,
        "k8s.namespace.name": WEB.namespace,
        "k8s.service.name": WEB.name,
    }


async def test_a_refusal_is_told(bridge: Bridge) -> None:
    tracer = await traced(bridge)
    client = bridge.client()
    await client.connect()
    bridge.backend.failure = NotPermitted(Violation(field="spec", reason="PoolNotPermitted", message="not for you"))
    with pytest.raises(NotPermitted):
        await client.ensure(WEB, REQUEST, trace=CONTEXT)
    (span,) = tracer.spans
    assert span.error == "NotPermitted"


async def test_without_a_trace_there_is_none(bridge: Bridge) -> None:
    tracer = await traced(bridge)
    await bridge.client().ensure(WEB, REQUEST)
    assert tracer.spans == []
    assert bridge.backend.traces == {"ensure": ""}


async def test_a_host_that_does_not_trace_takes_no_notice(bridge: Bridge) -> None:
    await bridge.client().ensure(WEB, REQUEST, trace=CONTEXT)
    assert bridge.backend.traces == {"ensure": ""}


@pytest.mark.parametrize("text", ["", "rubbish", CONTEXT + "-more", "00-" + "f" * 20_000, CONTEXT.upper()])
async def test_what_is_no_context_is_passed_over(bridge: Bridge, text: str) -> None:
    tracer = await traced(bridge)
    client = bridge.client()
    await client.connect()
    pair = bridge.authority.client()
    paths = bridge.authority.write("raw", pair)
    credentials = grpc.ssl_channel_credentials(
        paths.ca.read_bytes(), paths.key.read_bytes(), paths.certificate.read_bytes()
    )
    options = [("grpc.max_metadata_size", 64 * 1024)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{bridge.port}", credentials, options=options) as channel:
        stub: pb_grpc.LoadBalancerBridgeAsyncStub = pb_grpc.LoadBalancerBridgeStub(channel)
        metadata = (("cluster-uid", HELLO.cluster_uid), ("traceparent", text))
        async with asyncio.timeout(10):
            await stub.EnsureLoadBalancer(ensure_to_wire(WEB, REQUEST, ()), metadata=metadata)
    assert tracer.spans == []
    assert bridge.backend.traces == {"ensure": ""}
