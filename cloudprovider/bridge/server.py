"""The host's side of the bridge: a gRPC server that lets each tenant reach its own load balancers, and nothing else."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloudprovider.bridge import codec
from cloudprovider.bridge.api import PROTOCOL_VERSION, TRACE_KEY, PeerCertificate, Reason, TenantBackend, TenantPolicy
from cloudprovider.bridge.failures import METADATA_BYTES, to_status, trailer
from cloudprovider.bridge.identity import Authenticator, check
from cloudprovider.bridge.limits import FairGate, StreamSlots, TokenBucket
from cloudprovider.bridge.observer import ServerObserver, Unobserved
from cloudprovider.bridge.statelog import Reader
from cloudprovider.bridge.tlsfiles import SERVER, TlsFiles, TlsMaterial, TlsPaths
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.core import tracing
from cloudprovider.core.errors import BridgeError, CloudProviderError, ConfigurationError
from cloudprovider.core.exchange import ServiceKey, Tenant
from cloudprovider.core.tracing import NO_TRACER, Tracer

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")
_Context = grpc.aio.ServicerContext[object, object]

CLUSTER_UID_KEY = "cluster-uid"
SERVICE_NAME = "cloudprovider.bridge.v1.LoadBalancerBridge"
BATCH = 200
"""Load balancers in one message of a watch stream."""
BATCH_INTERVAL = 0.02
"""Seconds between two messages of a stream, at least: a burst becomes few messages. The first goes at once."""
RECHECK_INTERVAL = 300.0
"""Seconds after which an open stream's certificate is looked at again, though nothing told that it has changed."""
WRITE_TIMEOUT = 60.0
"""Seconds that a guest may take to accept one message of a stream."""

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # a second server on the port is a mistake to hear of
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),  # an inventory of 100,000 Services
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.max_concurrent_streams", 512),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # 60 s by default, and grpc.keepalive_timeout_ms does not shorten it (1.85)
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """``listen``: "ADDRESS:PORT". ``call_seconds``: the longest that any call may take. ``calls_at_once``: over all
    tenants, given to them in turn."""

    listen: str
    tls: TlsPaths
    trust_domain: str
    call_seconds: float = 30.0
    calls_at_once: int = 64


class BridgeServer:
    """The server; ``start`` it when the backend's cache has synced, ``stop`` it once."""

    def __init__(
        self,
        config: ServerConfig,
        backend: TenantBackend,
        *,
        tracer: Tracer = NO_TRACER,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        observer: ServerObserver | None = None,
    ) -> None:
        self._config = config
        self._observer: ServerObserver = observer or Unobserved()
        self._files = TlsFiles(config.tls, SERVER)
        self._servicer = _Servicer(config, backend, now, tracer=tracer, observer=self._observer)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # not in the stubs
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listen, and return the port.

        Raises ConfigurationError if the certificate files can't be used, or the address can't be listened on.
        """
        material = self._files.load()
        self._observer.certified(material.not_after)
        credentials = grpc.dynamic_ssl_server_credentials(
            _certificates(material),
            self._changed_certificates,  # type: ignore[arg-type] # None is "unchanged" (grpc's own documentation)
            require_client_authentication=True,
        )
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self._servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            port = server.add_secure_port(self._config.listen, credentials)
            await server.start()
        except RuntimeError as e:
            raise ConfigurationError(f"the bridge can't listen on {self._config.listen}: {e}") from e
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        log.info("The bridge listens", extra={"address": self._config.listen, "port": port})
        return port

    async def stop(self, grace: float = 5.0) -> None:
        """Tell the guests to come again, let running calls end within ``grace`` seconds, and let go of the port."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        self._servicer.stop()
        await self._server.stop(grace)
        self._server = None

    def _changed_certificates(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's own thread before every handshake."""
        material = self._files.changed()
        if material is None:
            return None
        self._observer.certified(material.not_after)
        log.info("The bridge's certificate files have changed", extra={"not_after": material.not_after.isoformat()})
        return _certificates(material)


def _certificates(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.ca)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


class _Servicer:
    """Each call: who is it, may it still, is it its turn, then the backend; every failure becomes a status."""

    def __init__(
        self,
        config: ServerConfig,
        backend: TenantBackend,
        now: Callable[[], datetime],
        *,
        tracer: Tracer,
        observer: ServerObserver,
    ) -> None:
        self._backend = backend
        self._tracer = tracer
        self._observer = observer
        self._now = now
        self._call_seconds = config.call_seconds
        self._authenticator = Authenticator(config.trust_domain)
        self._gate = FairGate(config.calls_at_once)
        self._slots = StreamSlots()
        self._buckets: dict[Tenant, TokenBucket] = {}
        self._streams: dict[Tenant, set[Reader]] = {}
        self._stopping = False
        self._unsubscribe = backend.on_policy_change(self._policy_changed)

    def stop(self) -> None:
        """End all streams."""
        self._stopping = True
        self._unsubscribe()
        for tenant in list(self._streams):
            self._policy_changed(tenant)

    def handlers(self) -> "grpc.GenericRpcHandler[object, object]":
        """Return the methods of the service. Not by the generated base class: that one knows only generators for a
        stream, and only writing to the context can be given a deadline."""
        unary: dict[str, tuple[Callable[..., Awaitable[Message]], type[Message]]] = {
            "Connect": (self.connect, pb.ConnectRequest),
            "EnsureLoadBalancer": (self.ensure, pb.EnsureLoadBalancerRequest),
            "DeleteLoadBalancer": (self.delete, pb.DeleteLoadBalancerRequest),
            "ReportNodes": (self.report_nodes, pb.ReportNodesRequest),
            "ReportInventory": (self.report_inventory, pb.ReportInventoryRequest),
            "RenewCertificate": (self.renew_certificate, pb.RenewCertificateRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._observed(name, method, timed=True),
                request_deserializer=request.FromString,
                response_serializer=_serialize,
            )
            for name, (method, request) in unary.items()
        }
        methods["WatchLoadBalancers"] = grpc.unary_stream_rpc_method_handler(
            self._observed("WatchLoadBalancers", self.watch, timed=False),
            request_deserializer=pb.WatchLoadBalancersRequest.FromString,
            response_serializer=_serialize,
        )
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _observed(
        self, name: str, method: Callable[[R, _Context], Awaitable[T]], *, timed: bool
    ) -> Callable[[R, _Context], Awaitable[T]]:
        """``method``, its failures as statuses; and the observer hears of its end."""

        async def observed(request: R, context: _Context) -> T:
            began = time.monotonic()
            code = "CANCELLED"  # the caller's deadline, or its end
            try:
                result = await method(request, context)
                code = grpc.StatusCode.OK.name
            except Exception as e:  # noqa: BLE001 - every failure becomes a status
                ended, status = to_status(_told(e, context))
                code = ended.name
                await context.abort(ended, str(status.message), trailer(status))
            else:
                return result
            finally:
                self._observer.served(self._known(context), name, code, time.monotonic() - began if timed else None)

        return observed

    def _known(self, context: _Context) -> Tenant | None:
        """The caller, if it is a tenant that there is: anybody else could be called anything."""
        try:
            tenant = self._authenticator.certificate(context.auth_context()).tenant
        except BridgeError:
            return None
        return tenant if self._backend.policy(tenant) is not None else None

    async def connect(self, request: pb.ConnectRequest, context: _Context) -> pb.ConnectResponse:
        async def handle(tenant: Tenant) -> pb.ConnectResponse:
            version = min(request.protocol_version, PROTOCOL_VERSION)
            if version < max(request.min_protocol_version or request.protocol_version, PROTOCOL_VERSION):
                raise BridgeError(
                    f"the guest speaks version {request.protocol_version} of the bridge's protocol (at least"
                    f" {request.min_protocol_version or request.protocol_version}), the host version"
                    f" {PROTOCOL_VERSION}: upgrade the older of the two",
                    reason=Reason.UNSUPPORTED_VERSION,
                    retryable=False,
                )
            hello = codec.hello_from_wire(request)
            certificate = self._authenticator.certificate(context.auth_context())
            welcome = await self._backend.connect(tenant, hello, certificate)
            return pb.ConnectResponse(
                host_version=welcome.host_version,
                protocol_version=version,
                namespace=welcome.tenant.namespace,
                cluster=welcome.tenant.cluster,
                max_ports=welcome.max_ports,
            )

        return await self._call(context, handle, bound=False)

    async def ensure(self, request: pb.EnsureLoadBalancerRequest, context: _Context) -> pb.EnsureLoadBalancerResponse:
        async def handle(tenant: Tenant) -> pb.EnsureLoadBalancerResponse:
            service, wanted, shown = codec.ensure_from_wire(request)
            with self._traced("EnsureLoadBalancer", tenant, service, context) as trace:
                state = await self._backend.ensure(tenant, service, wanted, shown, trace=trace)
            return pb.EnsureLoadBalancerResponse(state=codec.state_to_wire(state))

        return await self._call(context, handle)

    async def delete(self, request: pb.DeleteLoadBalancerRequest, context: _Context) -> pb.DeleteLoadBalancerResponse:
        async def handle(tenant: Tenant) -> pb.DeleteLoadBalancerResponse:
            service = codec.service_from_wire(request.service)
            with self._traced("DeleteLoadBalancer", tenant, service, context) as trace:
                await self._backend.delete(tenant, service, trace=trace)
            return pb.DeleteLoadBalancerResponse()

        return await self._call(context, handle)

    async def report_nodes(self, request: pb.ReportNodesRequest, context: _Context) -> pb.ReportNodesResponse:
        async def handle(tenant: Tenant) -> pb.ReportNodesResponse:
            rejected = await self._backend.report_nodes(tenant, codec.nodes_from_wire(request))
            return codec.rejected_to_wire(rejected)

        return await self._call(context, handle)

    async def report_inventory(
        self, request: pb.ReportInventoryRequest, context: _Context
    ) -> pb.ReportInventoryResponse:
        async def handle(tenant: Tenant) -> pb.ReportInventoryResponse:
            result = await self._backend.report_inventory(tenant, codec.inventory_from_wire(request))
            return pb.ReportInventoryResponse(
                deleted=[codec.service_to_wire(key) for key in result.deleted], held_back=result.held_back
            )

        return await self._call(context, handle)

    async def renew_certificate(
        self, request: pb.RenewCertificateRequest, context: _Context
    ) -> pb.RenewCertificateResponse:
        async def handle(_: Tenant) -> pb.RenewCertificateResponse:
            certificate = self._authenticator.certificate(context.auth_context())
            csr = codec.csr_from_wire(request)
            issued = await self._backend.renew_certificate(certificate, csr)
            return pb.RenewCertificateResponse(certificate=issued.certificate, authorities=issued.authorities)

        return await self._call(context, handle)

    async def watch(self, request: pb.WatchLoadBalancersRequest, context: _Context) -> None:
        certificate = self._authenticator.certificate(context.auth_context())
        tenant = certificate.tenant
        policy = self._admit(certificate, context, bound=True)
        with (
            self._slots.slot(tenant, policy.streams),
            Reader(self._backend.states(tenant), request.resume_token) as reader,
        ):
            streams = self._streams.setdefault(tenant, set())
            streams.add(reader)
            self._tell_streams()
            try:
                await self._stream(reader, certificate, context)
            finally:
                streams.discard(reader)
                if not streams:
                    self._streams.pop(tenant, None)
                self._tell_streams()

    def _tell_streams(self) -> None:
        self._observer.streams({tenant: len(streams) for tenant, streams in self._streams.items()})

    async def _stream(self, reader: Reader, certificate: PeerCertificate, context: _Context) -> NoReturn:
        await self._write(context, pb.WatchLoadBalancersResponse(resumed=reader.resumed))
        while True:
            if self._stopping:
                raise BridgeError("the host's program is ending", reason=Reason.UNAVAILABLE, retry_after=1.0)
            self._admit(certificate, context, bound=True)
            batch = reader.next(BATCH)
            if batch is None:
                left = (certificate.not_after - self._now()).total_seconds()
                try:
                    async with asyncio.timeout(min(max(left, 0.0), RECHECK_INTERVAL)):
                        await reader.wait()
                except TimeoutError:
                    pass  # look at the certificate again
                continue
            await self._write(
                context,
                pb.WatchLoadBalancersResponse(
                    updated=[codec.state_to_wire(state) for state in batch.updated],
                    removed=[codec.service_to_wire(key) for key in batch.removed],
                    synced=batch.synced,
                    resume_token=batch.token,
                ),
            )
            if batch.token:  # a snapshot needs no pause
                await asyncio.sleep(BATCH_INTERVAL)

    async def _write(self, context: _Context, message: pb.WatchLoadBalancersResponse) -> None:
        async with asyncio.timeout(WRITE_TIMEOUT):
            await context.write(message)

    async def _call(self, context: _Context, handler: Callable[[Tenant], Awaitable[T]], *, bound: bool = True) -> T:
        certificate = self._authenticator.certificate(context.auth_context())
        policy = self._admit(certificate, context, bound=bound)
        tenant = certificate.tenant
        async with asyncio.timeout(self._call_seconds):  # the caller's own deadline cancels
            wait = self._bucket(tenant, policy).take()
            if wait:
                await asyncio.sleep(wait)
            async with self._gate.turn(tenant):
                return await handler(tenant)

    def _admit(self, certificate: PeerCertificate, context: _Context, *, bound: bool) -> TenantPolicy:
        tenant = certificate.tenant
        policy = self._backend.policy(tenant)
        if policy is None:
            self._buckets.pop(tenant, None)
        policy = check(certificate, policy, self._now())
        self._observer.shown(tenant, certificate.not_after)
        if not bound:
            return policy
        claimed = next((str(value) for key, value in context.invocation_metadata() or () if key == CLUSTER_UID_KEY), "")
        if not claimed or not policy.cluster_uid:
            raise BridgeError("the guest has not introduced itself: call Connect", reason=Reason.NOT_CONNECTED)
        if claimed != policy.cluster_uid:
            raise BridgeError(
                f"GuestCluster {tenant.path} belongs to the cluster whose kube-system UID is {policy.cluster_uid}, the"
                f" caller's is {claimed}: give each cluster a certificate of its own; if this one was rebuilt,"
                " the host's operator lets it in by the annotation cloudprovider.harvesterhci.io/rebind",
                reason=Reason.CLUSTER_MISMATCH,
                retryable=False,
            )
        return policy

    @contextmanager
    def _traced(self, call: str, tenant: Tenant, service: ServiceKey, context: _Context) -> Iterator[str]:
        """A span of a call that comes with a trace, if there are any here; its context. Anything else in the metadata
        is none: a tenant may write what it likes."""
        told = (value for key, value in context.invocation_metadata() or () if key == TRACE_KEY)
        parent = tracing.well_formed(str(next(told, ""))) if self._tracer.enabled else ""
        if not parent:
            yield ""
            return
        said = {
            tracing.TENANT: tenant.path,
            tracing.SERVICE_NAMESPACE: service.namespace,
            tracing.SERVICE_NAME: service.name,
        }
        name = f"bridge {call}"
        with self._tracer.span(name, parent=parent, kind="server", foreign=True, attributes=said) as span:
            yield span.context

    def _bucket(self, tenant: Tenant, policy: TenantPolicy) -> TokenBucket:
        bucket = self._buckets.get(tenant)
        if bucket is None or bucket.rate != policy.calls_per_second:
            bucket = TokenBucket(policy.calls_per_second, asyncio.get_running_loop().time)
            self._buckets[tenant] = bucket
        return bucket

    def _policy_changed(self, tenant: Tenant) -> None:
        for reader in self._streams.get(tenant, ()):
            reader.wake()


def _told(error: Exception, context: _Context) -> CloudProviderError:
    """What a call's failure is to the caller."""
    if isinstance(error, TimeoutError):
        return BridgeError("the host did not finish in time: try again", reason=Reason.DEADLINE_EXCEEDED)
    if isinstance(error, LookupError):
        return BridgeError("the stream fell behind: open a new one", reason=Reason.UNAVAILABLE)
    if not isinstance(error, CloudProviderError):
        log.error("A call of the bridge failed unexpectedly", exc_info=error, extra={"peer": context.peer()})
        return CloudProviderError()
    return error
