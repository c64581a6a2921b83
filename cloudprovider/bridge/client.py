"""The guest's side of the bridge, over gRPC."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import grpc

from cloudprovider.bridge import codec
from cloudprovider.bridge.api import (
    PROTOCOL_VERSION,
    TRACE_KEY,
    BridgeEvent,
    Connected,
    Disconnected,
    Hello,
    IssuedCertificate,
    Reason,
    StateChange,
    Welcome,
)
from cloudprovider.bridge.diagnosis import diagnose
from cloudprovider.bridge.failures import METADATA_BYTES, from_rpc_error
from cloudprovider.bridge.observer import ClientObserver, Unobserved
from cloudprovider.bridge.tlsfiles import CLIENT, TlsFiles, TlsMaterial, TlsPaths
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.bridge.v1 import bridge_pb2_grpc as pb_grpc
from cloudprovider.core.errors import BridgeError, CloudProviderError
from cloudprovider.core.exchange import (
    Inventory,
    InventoryResult,
    LoadBalancerRequest,
    LoadBalancerState,
    RejectedNode,
    ReportedNode,
    ServiceKey,
    Tenant,
)
from cloudprovider.core.plan import IPAddress

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")

if TYPE_CHECKING:  # the typed stub, and the type parameters of calls, are in the stubs only
    _Method = Callable[[pb_grpc.LoadBalancerBridgeAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]]

CALL_SECONDS = 10.0
"""Deadline of a call about one Service."""
REPORT_SECONDS = 60.0
"""Deadline of a call about all nodes or all Services."""
FIRST_MESSAGE_SECONDS = 15.0
"""A watch stream's first message comes at once; this long is waited for it."""
FILES_SECONDS = 5.0
"""How often, at most, certificate files are looked at."""
DIAGNOSIS_SECONDS = 5.0
"""How long a diagnosis holds before it is made again."""
OLD_CHANNEL_SECONDS = REPORT_SECONDS
"""How long calls that run may stay on a channel whose certificate was replaced."""

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # 60 s by default, and grpc.keepalive_timeout_ms does not shorten it (1.85)
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a host that is back is seen at once; calls have a backoff of their own
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long a connection may take to come up, also when all guests return
    ("grpc.enable_http_proxy", 0),  # an environment made for the web is not meant for the host
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, with the new certificate
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """``target``: "HOST:PORT" of the bridge. ``server_name``: the name in its certificate, where it is not HOST.

    ``backoff``: seconds before the first new attempt and the most between two, before jitter.
    """

    target: str
    tls: TlsPaths
    hello: Hello
    server_name: str = ""
    backoff: tuple[float, float] = (0.5, 3.0)


class GrpcBridge:
    """A :class:`~cloudprovider.bridge.api.BridgeClient` that speaks to a host. Made for one event loop.

    Raises ConfigurationError if the certificate files can't be used at the start. Later it keeps the last good ones.
    """

    def __init__(
        self,
        config: ClientConfig,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        random_source: random.Random | None = None,
        observer: ClientObserver | None = None,
    ) -> None:
        self._config = config
        self._now = now
        self._random = random_source or random.SystemRandom()
        self._observer: ClientObserver = observer or Unobserved()
        self._files = TlsFiles(config.tls, CLIENT)
        self._channel = self._open(self._files.load())
        self._stub: pb_grpc.LoadBalancerBridgeAsyncStub = pb_grpc.LoadBalancerBridgeStub(self._channel)
        self._files_at = 0.0
        self._retired: set[asyncio.Task[None]] = set()
        self._introducing = asyncio.Lock()
        self._introductions = 0
        self._diagnosis: tuple[float, BridgeError | None] = (0.0, None)
        self._diagnosing = asyncio.Lock()
        self._closed = False
        self._token = ""
        self._metadata: tuple[tuple[str, str], ...] = (("cluster-uid", config.hello.cluster_uid),)

    async def ensure(
        self,
        service: ServiceKey,
        request: LoadBalancerRequest,
        shown_addresses: tuple[IPAddress, ...] = (),
        *,
        trace: str = "",
    ) -> LoadBalancerState:
        """See BridgeClient."""
        message = codec.ensure_to_wire(service, request, shown_addresses)
        response = await self._call(lambda stub: stub.EnsureLoadBalancer, message, CALL_SECONDS, trace)
        return codec.state_from_wire(response.state)

    async def delete(self, service: ServiceKey, *, trace: str = "") -> None:
        """See BridgeClient."""
        message = pb.DeleteLoadBalancerRequest(service=codec.service_to_wire(service))
        await self._call(lambda stub: stub.DeleteLoadBalancer, message, CALL_SECONDS, trace)

    async def report_nodes(self, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """See BridgeClient."""
        response = await self._call(lambda stub: stub.ReportNodes, codec.nodes_to_wire(nodes), REPORT_SECONDS)
        return codec.rejected_from_wire(response)

    async def report_inventory(self, inventory: Inventory) -> InventoryResult:
        """See BridgeClient."""
        message = codec.inventory_to_wire(inventory)
        response = await self._call(lambda stub: stub.ReportInventory, message, REPORT_SECONDS)
        return InventoryResult(tuple(codec.service_from_wire(k) for k in response.deleted), response.held_back)

    async def renew_certificate(self, request: bytes) -> IssuedCertificate:
        """See BridgeClient."""
        message = pb.RenewCertificateRequest(csr=request)
        response = await self._call(lambda stub: stub.RenewCertificate, message, CALL_SECONDS)
        return IssuedCertificate(response.certificate, response.authorities)

    async def connect(self) -> Welcome:
        """Introduce this guest. ``watch`` and every call do so when needed; by hand only to try a connection.

        Raises BridgeError, also UNSUPPORTED_VERSION when the host answers with a version that is not spoken here.
        """
        hello = self._config.hello
        request = pb.ConnectRequest(
            cluster_uid=hello.cluster_uid,
            guest_version=hello.guest_version,
            protocol_version=PROTOCOL_VERSION,
            min_protocol_version=PROTOCOL_VERSION,
        )
        response = await self._once(lambda stub: stub.Connect, request, CALL_SECONDS)
        if response.protocol_version != PROTOCOL_VERSION:
            raise BridgeError(
                f"the host (version {response.host_version}) wants to speak version {response.protocol_version} of the"
                f" bridge's protocol, this guest speaks version {PROTOCOL_VERSION}: upgrade the older of the two",
                reason=Reason.UNSUPPORTED_VERSION,
                retryable=False,
            )
        self._introductions += 1
        return Welcome(
            host_version=response.host_version,
            tenant=Tenant(response.namespace, response.cluster),
            max_ports=response.max_ports,
        )

    async def watch(self) -> AsyncIterator[BridgeEvent]:
        """See BridgeClient."""
        loop = asyncio.get_running_loop()
        self._token = ""  # who begins to watch knows nothing yet
        failures = 0
        while not self._closed:
            began = loop.time()
            try:
                async for event in self._stream():
                    yield event
                continue  # the certificate was renewed: the next stream is on the new channel
            except BridgeError as e:
                error = e
            except CloudProviderError as e:
                error = BridgeError(str(e), retryable=False)
            if loop.time() - began > self._config.backoff[1]:
                failures = 0  # that stream stood; one that breaks at once keeps being waited for longer
            delay = max(retry_delay(failures, self._config.backoff, self._random), error.retry_after or 0.0)
            failures += 1
            yield Disconnected(error=error, retry_in=delay)
            await asyncio.sleep(delay)

    async def close(self) -> None:
        """See BridgeClient."""
        self._closed = True
        for task in list(self._retired):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._channel.close(None)

    async def _stream(self) -> AsyncIterator[BridgeEvent]:
        """One stream, from where the last ended. Ends when the channel is replaced."""
        welcome = await self.connect()
        stub = self._fresh_stub()
        request = pb.WatchLoadBalancersRequest(resume_token=self._token)
        call = stub.WatchLoadBalancers(request, metadata=self._metadata)
        code = "CANCELLED"
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                message = await call.read()
            if not isinstance(message, pb.WatchLoadBalancersResponse):
                code = "OK"
                raise BridgeError("the host ended the watch stream", reason=Reason.UNAVAILABLE)
            if not message.resumed:
                self._token = ""
            yield Connected(welcome=welcome, resumed=message.resumed)
            while True:
                if message.updated or message.removed or message.synced:
                    yield _change(message)
                    self._token = message.resume_token  # only now: what was not taken in must come again
                read = asyncio.ensure_future(call.read())
                try:
                    while not (await asyncio.wait({read}, timeout=FILES_SECONDS))[0]:
                        if self._fresh_stub() is not stub:
                            return
                finally:
                    read.cancel()
                message = read.result()
                if not isinstance(message, pb.WatchLoadBalancersResponse):
                    code = "OK"
                    raise BridgeError("the host ended the watch stream", reason=Reason.UNAVAILABLE)
        except grpc.aio.AioRpcError as e:
            code = e.code().name
            raise await self._explain(e) from e
        except TimeoutError as e:
            code = "DEADLINE_EXCEEDED"
            raise BridgeError("the host opens no watch stream in time", reason=Reason.DEADLINE_EXCEEDED) from e
        finally:
            call.cancel()
            self._observer.called("WatchLoadBalancers", code, None)

    async def _call(
        self,
        method: "_Method[Request, Response]",
        request: Request,
        timeout: float,
        trace: str = "",
    ) -> Response:
        """One call; if the host does not know this guest yet, it is introduced, and the call made once more."""
        before = self._introductions
        try:
            return await self._once(method, request, timeout, trace)
        except BridgeError as e:
            if e.reason != Reason.NOT_CONNECTED:
                raise
        async with self._introducing:
            if self._introductions == before:  # nobody else has done so meanwhile
                await self.connect()
        return await self._once(method, request, timeout, trace)

    async def _once(
        self,
        method: "_Method[Request, Response]",
        request: Request,
        timeout: float,
        trace: str = "",
    ) -> Response:
        if self._closed:
            raise BridgeError("the bridge's client is closed", reason=Reason.UNAVAILABLE)
        metadata = (*self._metadata, (TRACE_KEY, trace)) if trace else self._metadata
        began, ended, code = time.monotonic(), 0.0, "CANCELLED"
        try:
            response = await method(self._fresh_stub())(request, timeout=timeout, metadata=metadata)
            ended, code = time.monotonic(), "OK"
        except grpc.aio.AioRpcError as e:
            ended, code = time.monotonic(), e.code().name
            raise await self._explain(e) from e
        else:
            return response
        finally:
            name = type(request).__name__.removesuffix("Request")
            self._observer.called(name, code, (ended or time.monotonic()) - began)

    def _fresh_stub(self) -> "pb_grpc.LoadBalancerBridgeAsyncStub":
        """The stub of a channel with the newest certificates: channels keep those that they were made with."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._files_at:
            self._files_at = loop.time() + FILES_SECONDS
            material = self._files.changed()
            if material is not None and not self._closed:
                log.info("The bridge's client certificate has changed", extra={"not_after": str(material.not_after)})
                retired = loop.create_task(self._channel.close(OLD_CHANNEL_SECONDS))
                self._retired.add(retired)
                retired.add_done_callback(self._retired.discard)
                self._channel = self._open(material)
                self._stub = pb_grpc.LoadBalancerBridgeStub(self._channel)
        return self._stub

    def _open(self, material: TlsMaterial) -> grpc.aio.Channel:
        options = list(_OPTIONS)
        if self._config.server_name:
            options.append(("grpc.ssl_target_name_override", self._config.server_name))
        self._observer.certified(material.not_after)
        credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
        return grpc.aio.secure_channel(self._config.target, credentials, options=options)

    async def _explain(self, error: grpc.aio.AioRpcError) -> CloudProviderError:
        """What a failed call means; where gRPC itself gave up, what keeps the connection from working."""
        known = from_rpc_error(error)
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not isinstance(known, BridgeError):
            return known
        if known.retry_after is not None:  # the host's own words
            return known
        async with self._diagnosing:
            loop = asyncio.get_running_loop()
            until, diagnosis = self._diagnosis
            if loop.time() >= until:
                diagnosis = await diagnose(self._config.target, self._config.tls, self._now(), self._config.server_name)
                self._diagnosis = (loop.time() + DIAGNOSIS_SECONDS, diagnosis)
        return diagnosis or known


def retry_delay(failures: int, bounds: tuple[float, float], rng: random.Random) -> float:
    """Seconds to wait after ``failures`` earlier ones in a row: ``bounds``' first, doubled each time up to the second.

    Half of it is left to chance, so that many guests do not come back at once.
    """
    first, most = bounds
    return min(most, first * 2.0 ** min(failures, 16)) * rng.uniform(0.5, 1.0)


def _change(message: pb.WatchLoadBalancersResponse) -> StateChange:
    return StateChange(
        updated=tuple(codec.state_from_wire(state) for state in message.updated),
        removed=tuple(codec.service_from_wire(key) for key in message.removed),
        synced=message.synced,
    )
