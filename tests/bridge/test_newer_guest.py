"""A guest that is newer than this host: what is not known here is refused by its field, or passed over where it can
be, and never guessed."""

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.message import Message

from cloudprovider.bridge import codec
from cloudprovider.bridge.failures import from_rpc_error
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.bridge.v1 import bridge_pb2_grpc as pb_grpc
from cloudprovider.core.errors import InvalidRequest
from tests.bridge.backend_contract import REQUEST, WEB
from tests.bridge.conftest import HELLO, Bridge
from tests.bridge.test_newer_host import UNKNOWN_FIELD
from tests.bridge.tls import TENANT

METADATA = (("cluster-uid", HELLO.cluster_uid),)
NEW = 99
"""A value of an enum that no version has yet."""


def request() -> pb.EnsureLoadBalancerRequest:
    return codec.ensure_to_wire(WEB, REQUEST, ())


def with_unknown(message: Message) -> bytes:
    return message.SerializeToString() + UNKNOWN_FIELD


@pytest.fixture
async def stub(bridge: Bridge) -> AsyncIterator["pb_grpc.LoadBalancerBridgeAsyncStub"]:
    """The bridge as another program would call it, introduced."""
    pair, ca = bridge.authority.client(), bridge.authority.ca.certificate
    credentials = grpc.ssl_channel_credentials(ca, pair.key, pair.certificate)
    async with grpc.aio.secure_channel(f"127.0.0.1:{bridge.port}", credentials) as channel:
        made: pb_grpc.LoadBalancerBridgeAsyncStub = pb_grpc.LoadBalancerBridgeStub(channel)
        await made.Connect(pb.ConnectRequest(cluster_uid=HELLO.cluster_uid, protocol_version=1), timeout=10)
        yield made


ENUMS = {
    "spec.ports[1].protocol": pb.LoadBalancerSpec(
        listeners=[
            pb.Listener(protocol=pb.PROTOCOL_TCP, port=80),
            pb.Listener(protocol=NEW, port=80),  # type: ignore[arg-type]
        ]
    ),
    "spec.ipFamilies[1]": pb.LoadBalancerSpec(ip_families=[pb.IP_FAMILY_IPV4, NEW]),  # type: ignore[list-item]
    "spec.ipFamilyPolicy": pb.LoadBalancerSpec(ip_family_policy=NEW),  # type: ignore[arg-type]
    "spec.ipam": pb.LoadBalancerSpec(ipam=NEW),  # type: ignore[arg-type]
    "spec.mode": pb.LoadBalancerSpec(mode=NEW),  # type: ignore[arg-type]
    "spec.externalTrafficPolicy": pb.LoadBalancerSpec(external_traffic_policy=NEW),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("field", ENUMS)
async def test_a_value_that_is_not_known_here_is_refused_by_its_field(
    bridge: Bridge, stub: "pb_grpc.LoadBalancerBridgeAsyncStub", field: str
) -> None:
    asked = request()
    if "ports" in field:
        del asked.spec.listeners[:]
    asked.spec.MergeFrom(ENUMS[field])
    with pytest.raises(grpc.aio.AioRpcError) as e:
        await stub.EnsureLoadBalancer(asked, timeout=10, metadata=METADATA)
    assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(e.value)
    assert isinstance(error, InvalidRequest)
    (violation,) = error.violations
    assert (violation.field, violation.reason) == (field, "Unsupported")
    assert f"value {NEW} is not known to this host, whose program may be older" in violation.message
    assert not bridge.backend.load_balancers


def test_every_enum_of_a_request_is_tried() -> None:
    of_spec = (*pb.LoadBalancerSpec.DESCRIPTOR.fields, *pb.Listener.DESCRIPTOR.fields)
    assert len(ENUMS) == sum(field.enum_type is not None for field in of_spec)


async def test_fields_that_are_not_known_here_are_passed_over(
    bridge: Bridge, stub: "pb_grpc.LoadBalancerBridgeAsyncStub"
) -> None:
    """A guest that needs such a field to be heeded asks for a higher version of the protocol (Connect)."""
    asked = request()
    asked.service.MergeFromString(UNKNOWN_FIELD)
    asked.spec.MergeFromString(UNKNOWN_FIELD)
    asked.spec.listeners[0].MergeFromString(UNKNOWN_FIELD)
    answer = await stub.EnsureLoadBalancer(
        pb.EnsureLoadBalancerRequest.FromString(with_unknown(asked)), timeout=10, metadata=METADATA
    )
    assert answer.state.service.name == WEB.name
    assert bridge.backend.load_balancers[(TENANT, WEB)].request == REQUEST
    nodes = pb.ReportNodesRequest(nodes=[pb.Node.FromString(with_unknown(pb.Node(name="n", addresses=["10.0.0.1"])))])
    assert not (await stub.ReportNodes(nodes, timeout=10, metadata=METADATA)).rejected
    item = pb.InventoryItem.FromString(with_unknown(pb.InventoryItem(service=asked.service)))
    inventory = pb.ReportInventoryRequest(items=[item], resource_version="1", complete=True, fencing_token=1)
    assert not (await stub.ReportInventory(inventory, timeout=10, metadata=METADATA)).deleted
    assert (TENANT, WEB) in bridge.backend.load_balancers
