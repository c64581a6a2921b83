"""A client of the bridge without a wire, for tests: it calls a backend in the same process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from cloudprovider.bridge.api import (
    BridgeEvent,
    Connected,
    Disconnected,
    Hello,
    IssuedCertificate,
    PeerCertificate,
    Reason,
    StateChange,
    TenantBackend,
)
from cloudprovider.bridge.statelog import Reader
from cloudprovider.core.errors import BridgeError, CloudProviderError, KubeError
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

T = TypeVar("T")

FIRST_RETRY_SECONDS: Final = 0.01
RETRY_SECONDS: Final = 15.0


class LocalBridge:
    """A BridgeClient that calls a backend in the same process, with a connection that can be cut.

    It comes again ever more slowly, as the real one does, but at once when a cut is mended.
    """

    def __init__(
        self, backend: TenantBackend, tenant: Tenant, hello: Hello, certificate: PeerCertificate | None = None
    ) -> None:
        self.backend = backend
        self.tenant = tenant
        self.hello = hello
        self.certificate = certificate
        self._cut: BridgeError | None = None
        self._readers: set[Reader] = set()
        self._mended = asyncio.Event()
        self._mended.set()
        self._closed = False

    @contextmanager
    def cut(self, error: BridgeError | None = None) -> Iterator[None]:
        """Break the connection, as long as the context lasts."""
        self._cut = error or BridgeError("the line is cut", reason=Reason.UNAVAILABLE)
        self._mended.clear()
        for reader in self._readers:
            reader.wake()
        try:
            yield
        finally:
            self._cut = None
            self._mended.set()

    async def ensure(
        self,
        service: ServiceKey,
        request: LoadBalancerRequest,
        shown_addresses: tuple[IPAddress, ...] = (),
        *,
        trace: str = "",
    ) -> LoadBalancerState:
        """See BridgeClient."""
        return await self._call(
            lambda: self.backend.ensure(self.tenant, service, request, shown_addresses, trace=trace)
        )

    async def delete(self, service: ServiceKey, *, trace: str = "") -> None:
        """See BridgeClient."""
        await self._call(lambda: self.backend.delete(self.tenant, service, trace=trace))

    async def report_nodes(self, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """See BridgeClient."""
        return await self._call(lambda: self.backend.report_nodes(self.tenant, nodes))

    async def report_inventory(self, inventory: Inventory) -> InventoryResult:
        """See BridgeClient."""
        return await self._call(lambda: self.backend.report_inventory(self.tenant, inventory))

    async def renew_certificate(self, request: bytes) -> IssuedCertificate:
        """See BridgeClient."""
        certificate = self.certificate
        if certificate is None:
            raise BridgeError("a line without a wire has no certificate", reason=Reason.RENEWAL_NOT_OFFERED)
        return await self._call(lambda: self.backend.renew_certificate(certificate, request))

    async def watch(self) -> AsyncIterator[BridgeEvent]:
        """See BridgeClient."""
        token = ""
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                self._check()
                welcome = await self.backend.connect(self.tenant, self.hello)
                with Reader(self.backend.states(self.tenant), token) as reader:
                    self._readers.add(reader)
                    try:
                        yield Connected(welcome=welcome, resumed=reader.resumed)
                        pause = FIRST_RETRY_SECONDS
                        while True:
                            self._check()
                            batch = reader.next(200)
                            if batch is None:
                                await reader.wait()
                                continue
                            yield StateChange(updated=batch.updated, removed=batch.removed, synced=batch.synced)
                            token = batch.token
                    finally:
                        self._readers.discard(reader)
            except CloudProviderError as e:
                if self._closed:
                    return
                yield Disconnected(error=e if isinstance(e, BridgeError) else BridgeError(str(e)), retry_in=pause)
                if self._mended.is_set():
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_SECONDS)
                else:
                    await self._mended.wait()
                    await asyncio.sleep(FIRST_RETRY_SECONDS)

    async def close(self) -> None:
        """See BridgeClient."""
        self._closed = True
        self._mended.set()
        for reader in self._readers:
            reader.wake()

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        self._check()
        await asyncio.sleep(0)  # as every call over a wire lets others run
        try:
            policy = self.backend.policy(self.tenant)
            if policy is not None and policy.cluster_uid != self.hello.cluster_uid:
                await self.backend.connect(self.tenant, self.hello)
            return await call()
        except KubeError as e:
            raise BridgeError("the host's API server does not answer", reason=Reason.UNAVAILABLE) from e

    def _check(self) -> None:
        if self._closed:
            raise BridgeError("the bridge's client is closed", reason=Reason.UNAVAILABLE)
        if self._cut is not None:
            raise self._cut
